//go:build race

package stack

// underRace is true where the race detector runs; it makes sync.Pool forget at random.
const underRace = true
