package config

import "errors"

// Edit is a set of changes to the Data that are not in force yet. Load with it shows what they
// would make of the configuration, and then Commit writes them. An Edit belongs to one
// goroutine, and whoever begins one commits or forgets it before the next.
type Edit struct {
	data *Data
	ops  []operation
	plan *plan // what the last Load with it found right
}

// operation is one change.
type operation struct {
	kind    operationKind
	profile string // "" for the global settings
	key     string
	value   any
	spec    ProfileSpec
}

type operationKind uint8

const (
	opSet operationKind = iota
	opUnset
	opPrepend
	opPut
	opDelete
)

// Edit begins a set of changes.
func (d *Data) Edit() *Edit { return &Edit{data: d, ops: []operation{}} }

func (e *Edit) add(op operation) { e.ops, e.plan = append(e.ops, op), nil }

// Set changes a setting at run time. value is what JSON decodes to, or the text that the
// environment and flags would have.
func (e *Edit) Set(key string, value any) { e.add(operation{kind: opSet, key: key, value: value}) }

// Unset takes back what Set did: the preset or the default holds again.
func (e *Edit) Unset(key string) { e.add(operation{kind: opUnset, key: key}) }

// SetInProfile changes a setting of a profile that is not in the human's file. An automatic
// profile that somebody changes is from then on one that somebody made.
func (e *Edit) SetInProfile(name, key string, value any) {
	e.add(operation{kind: opSet, profile: name, key: key, value: value})
}

// UnsetInProfile leaves a setting of a profile to the layers below.
func (e *Edit) UnsetInProfile(name, key string) {
	e.add(operation{kind: opUnset, profile: name, key: key})
}

// PutProfile makes a profile or replaces the one of that name. One that is not automatic counts
// as made at run time, also if it is the copy of a pinned one.
func (e *Edit) PutProfile(p ProfileSpec) { e.add(operation{kind: opPut, profile: p.Name, spec: p}) }

// DeleteProfile removes a profile that is not in the human's file.
func (e *Edit) DeleteProfile(name string) { e.add(operation{kind: opDelete, profile: name}) }

// PrependRule puts a rule in front of a list of rules, of a profile or with profile "" of the
// global settings. The same rule in front already is no change.
func (e *Edit) PrependRule(profile, key, rule string) {
	e.add(operation{kind: opPrepend, profile: profile, key: key, value: rule})
}

// Commit writes the changes that the last Load with this Edit found right: each file as a whole,
// readable by its owner only. If it fails nothing was changed, or it says what was.
func (e *Edit) Commit() error {
	if e.plan == nil {
		return errors.New("these changes were not checked: load the configuration with them first")
	}
	return e.data.commit(e.plan)
}
