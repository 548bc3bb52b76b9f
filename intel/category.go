package intel

import "slices"

// Unbreak is the category of lists that name what must not be blocked: a match there cancels
// the matches of all other lists.
const Unbreak = "UNBREAK"

// Custom is the category of the lists that a person names in filter/customLists. No list of the
// policy has it, and nothing is made of it.
const Custom = "CUSTOM"

// category is one kind of list, and those that it is made of.
type category struct {
	id    string
	parts []string
}

func categories() []category {
	return []category{
		{"TRAC", []string{"ADS", "ALYTC", "TELEM", "TRACO"}},
		{"MAL", nil},
		{"DECEP", []string{"PHISH", "FRAUD"}},
		{"BAD", nil},
		{"NSFW", []string{"PORN", "VIOL", "GAMBL", "NSFWM"}},
		{"BIGT", nil},
		{"EXPERIMENTS", nil},
		{Unbreak, nil},
		{"SECUREDNS", nil},
		{"P2P", nil},
	}
}

// Categories returns all categories, each followed by those that it is made of.
func Categories() []string {
	var ids []string
	for _, c := range categories() {
		ids = append(append(ids, c.id), c.parts...)
	}
	return ids
}

// Expand returns the ids that an id stands for: a category and what it is made of, anything else
// itself.
func Expand(id string) []string {
	for _, c := range categories() {
		if c.id == id {
			return append([]string{id}, c.parts...)
		}
	}
	return []string{id}
}

// PartOf returns the category that another one is part of, "" if there is none.
func PartOf(id string) string {
	switch id {
	case "ADS", "ALYTC", "TELEM", "TRACO":
		return "TRAC"
	case "PHISH", "FRAUD":
		return "DECEP"
	case "PORN", "VIOL", "GAMBL", "NSFWM":
		return "NSFW"
	default:
		return ""
	}
}

// KnownCategory reports whether there is a category of that name.
func KnownCategory(id string) bool { return slices.Contains(Categories(), id) }
