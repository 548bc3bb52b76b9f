package policytest

import (
	"maps"
	"slices"
)

// Shrink takes away from a policy what the failure does not need. fails must not keep the policy.
func Shrink(p *Policy, fails func(*Policy) bool) *Policy {
	for again := true; again; {
		again = false
		for _, smaller := range less(p) {
			if fails(smaller) {
				p, again = smaller, true
				break
			}
		}
	}
	return p
}

// less returns the policies that lack one thing of p.
func less(p *Policy) []*Policy {
	var list []*Policy
	add := func(change func(*Policy)) {
		c := p.Clone()
		change(c)
		list = append(list, c)
	}
	for i := range p.Profiles {
		name := p.Profiles[i].Name
		add(func(c *Policy) {
			c.Profiles = slices.Delete(c.Profiles, i, i+1)
			for j := range c.Profiles {
				c.Profiles[j].Layers = slices.DeleteFunc(c.Profiles[j].Layers, func(l string) bool { return l == name })
			}
			c.Temporary = slices.DeleteFunc(c.Temporary, func(t Temporary) bool { return t.Profile == name })
		})
	}
	if p.Preset != "" {
		add(func(c *Policy) { c.Preset = "" })
	}
	for i := range p.Ratings {
		add(func(c *Policy) { c.Ratings = slices.Delete(c.Ratings, i, i+1) })
	}
	if len(p.Only) > 0 {
		add(func(c *Policy) { c.Only = c.Only[1:] })
	}
	if p.Paused {
		add(func(c *Policy) { c.Paused = false })
	}
	for i := range p.Temporary {
		add(func(c *Policy) { c.Temporary = slices.Delete(c.Temporary, i, i+1) })
	}
	lessOf(p.Runtime, nil, func(key string, _ int) {
		add(func(c *Policy) { delete(c.Runtime, key) })
	})
	lessOf(p.Settings, p.Lists, func(key string, i int) {
		add(func(c *Policy) { remove(c.Settings, c.Lists, key, i) })
	})
	for n := range p.Profiles {
		q := &p.Profiles[n]
		lessOf(q.Settings, q.Lists, func(key string, i int) {
			add(func(c *Policy) { remove(c.Profiles[n].Settings, c.Profiles[n].Lists, key, i) })
		})
		for i := range q.Match {
			if len(q.Match) > 1 {
				add(func(c *Policy) { c.Profiles[n].Match = slices.Delete(c.Profiles[n].Match, i, i+1) })
			}
		}
		for i := range q.Layers {
			add(func(c *Policy) { c.Profiles[n].Layers = slices.Delete(c.Profiles[n].Layers, i, i+1) })
		}
	}
	return list
}

// lessOf names each setting (i < 0) and each rule.
func lessOf(settings map[string]string, lists map[string][]Rule, each func(key string, i int)) {
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		each(key, -1)
	}
	for _, key := range slices.Sorted(maps.Keys(lists)) {
		for i := range lists[key] {
			each(key, i)
		}
	}
}

func remove(settings map[string]string, lists map[string][]Rule, key string, i int) {
	if i < 0 {
		delete(settings, key)
		return
	}
	lists[key] = slices.Delete(lists[key], i, i+1)
	if len(lists[key]) == 0 {
		delete(lists, key)
	}
}
