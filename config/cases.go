package config

// Nearest returns the candidate that is most like word, or "" if none is near: what the
// messages of other packages suggest.
func Nearest(word string, candidates []string) string { return nearest(word, candidates) }
