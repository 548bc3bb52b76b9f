package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"gatun/api"
	"gatun/intel"
)

// listControl implements what the API asks of filter lists.
type listControl struct {
	store   *intel.Store
	updated func() // puts in force what lists say now, and tells those who watch
}

// Lists implements api.Lists.
func (c listControl) Lists() []api.FilterList {
	var all []api.FilterList
	for _, l := range c.store.Status() {
		all = append(all, api.FilterList{
			ID: l.ID, Category: l.Category, Format: l.Format, Source: l.Source, Position: l.Position,
			Entries: l.Entries, Exceptions: l.Exceptions, Skipped: l.Skipped, Refused: l.Refused, Invalid: l.Invalid,
			Updated: instant(l.Updated), Checked: instant(l.Checked), Next: instant(l.Next), Error: l.Error, Warning: l.Warning,
		})
	}
	return all
}

// DataFiles implements api.Lists.
func (c listControl) DataFiles() []api.DataFile {
	var all []api.DataFile
	for _, f := range c.store.Geo() {
		all = append(all, api.DataFile{Kind: f.Kind, Path: f.Path, Type: f.Type, Built: instant(f.Built), Error: f.Error})
	}
	return all
}

// instant is a time as JSON has it: null where there is none.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// OnLists implements api.Lists.
func (c listControl) OnLists(text string) (api.ListMatches, error) {
	var (
		m     api.ListMatches
		stamp *intel.Stamp
	)
	if addr, err := netip.ParseAddr(text); err == nil {
		stamp = c.store.Stamp("", nil, addr)
	} else {
		name, ok := hostName(text)
		if !ok {
			return m, fmt.Errorf("%q is neither a name nor an address: %w", text, api.ErrUnusable)
		}
		stamp = c.store.Stamp(name, nil, netip.Addr{})
	}
	m.Country, m.Continent, m.ASN, m.ASOwner = stamp.Country, stamp.Continent, stamp.ASN, stamp.ASOwner
	for _, l := range stamp.Lists {
		m.Matches = append(m.Matches, api.ListMatch{List: l.ID, Category: l.Category, Source: l.Source, Line: l.Line, Entry: l.Name, Above: l.Above})
	}
	return m, nil
}

// listsUpdated puts lists in force before whoever asked for them is answered.
func (e *engine) listsUpdated() {
	e.listsChanged()
	e.table.PublishState() // when they were checked is a state too
}

// hostName writes a name as it is looked up. What a person may take for one, and is none, is told:
// a URL, or an address with a port, is on no list whatever the lists say.
func hostName(text string) (string, bool) {
	name, err := idna.Lookup.ToASCII(strings.ToLower(strings.TrimSuffix(text, ".")))
	if err != nil { // an underscore is no mistake in the DNS
		name = strings.ToLower(strings.TrimSuffix(text, "."))
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", false
		}
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	return name, len(name) <= 253 && strings.Trim(last, "0123456789") != ""
}

// Update implements api.Lists. What is wrong with a list is in its status.
func (c listControl) Update(ctx context.Context, u api.ListUpdate) error {
	update := c.store.Renew
	if u.Smaller {
		update = c.store.Update
	}
	err := update(ctx, u.IDs...)
	c.updated()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, intel.ErrNoList):
		return fmt.Errorf("%s: %w", strings.ReplaceAll(err.Error(), ": "+intel.ErrNoList.Error(), ""), api.ErrNotFound)
	default:
		return nil
	}
}
