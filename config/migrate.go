package config

import (
	"strconv"

	"go.yaml.in/yaml/v3"
)

// migration changes the tree of a file from one version to the next. There is none yet: the
// first version is the only one.
type migration func(root *yaml.Node)

// migrate brings an older tree up to date, as far as there are migrations, and returns the
// version that it had. What has no migration is left to the check of the version.
func (w *walker) migrate(root *yaml.Node) (old int, ok bool) {
	if root == nil || root.Kind != yaml.MappingNode {
		return 0, false
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		n := root.Content[i+1]
		if root.Content[i].Value != "version" || n.Tag != "!!int" {
			continue
		}
		number, err := strconv.Atoi(n.Value)
		if err != nil {
			return 0, false
		}
		for old = number; number < fileVersion; number++ {
			step := w.migrations[number]
			if step == nil {
				return 0, false
			}
			step(root)
			n.Value, ok = strconv.Itoa(number+1), true
		}
		return old, ok
	}
	return 0, false
}
