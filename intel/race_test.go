//go:build race

package intel

import "time"

// raceFactor is how much slower the race detector may make what is timed.
const raceFactor time.Duration = 10
