package config

import (
	"fmt"
	"slices"
	"strings"
)

// checkLayers refuses layers that are not there or lie under themselves, and profiles that never
// apply.
func (m *merger) checkLayers() {
	used := map[string]bool{}
	for i := range m.profiles {
		p := &m.profiles[i]
		for j, name := range p.Layers {
			used[name] = true
			if message, suggestion := m.layerFault(name); message != "" {
				m.w.problem(p.layerAt(j), fmt.Sprintf("profiles[%s]/layers[%d]", p.Name, j), message, suggestion)
			}
		}
	}
	m.cycles()
	for i := range m.profiles {
		p := &m.profiles[i]
		switch {
		case p.Match != nil || p.When != nil || used[p.Name] || p.Name == "":
		case p.Origin == Automatic:
			m.w.problem(p.Position, fmt.Sprintf("profiles[%s]", p.Name), "want match: a profile of origin automatic is for one program", "")
		default:
			m.w.warn(p.Position, fmt.Sprintf("profiles[%s]", p.Name), "never applies: it has no match and no when, and no profile names it in layers")
		}
	}
}

func (p *ProfileSpec) layerAt(i int) Position {
	if i < len(p.layersAt) {
		return p.layersAt[i]
	}
	return p.Position
}

func (m *merger) layerFault(name string) (message, suggestion string) {
	layer := m.profile(name)
	switch {
	case layer == nil:
		names := make([]string, 0, len(m.byName))
		for known := range m.byName {
			names = append(names, known)
		}
		slices.Sort(names)
		return fmt.Sprintf("there is no profile %q", name), nearest(name, names)
	case layer.When != nil:
		return fmt.Sprintf("%q has when: it lies under all profiles while its condition holds, and under none by name", name), ""
	}
	return "", ""
}

// cycles reports each cycle once, at the profile that stands first in it.
func (m *merger) cycles() {
	const inside, done = 1, 2
	state := make([]uint8, len(m.profiles))
	var path []string
	var visit func(i int)
	visit = func(i int) {
		p := &m.profiles[i]
		state[i], path = inside, append(path, p.Name)
		for j, name := range p.Layers {
			next, ok := m.byName[name]
			switch {
			case !ok || state[next] == done:
			case state[next] == inside:
				cycle := append(slices.Clone(path[slices.Index(path, name):]), name)
				m.w.problem(p.layerAt(j), fmt.Sprintf("profiles[%s]/layers[%d]", p.Name, j), "the layers go round in a circle: "+strings.Join(cycle, " > "), "")
			default:
				visit(next)
			}
		}
		state[i], path = done, path[:len(path)-1]
	}
	for i := range m.profiles {
		if state[i] == 0 {
			visit(i)
		}
	}
}
