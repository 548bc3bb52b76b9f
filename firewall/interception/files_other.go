//go:build !unix

package interception

// fileLimit is a bound on handles that this system does not have by itself.
func fileLimit() int { return 1 << 16 }
