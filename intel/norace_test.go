//go:build !race

package intel

import "time"

const raceFactor time.Duration = 1
