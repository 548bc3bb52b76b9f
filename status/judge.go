package status

import (
	"time"

	"gatun/config"
	"gatun/netenv"
)

// Judge says what the configuration makes of the network at that moment.
func Judge(cfg *config.Config, env netenv.Snapshot, now time.Time) State {
	v := cfg.Value("network/rating")
	s := State{Rating: Danger, Origin: v.Origin.String()}
	if r, err := ParseRating(cfg.String("network/rating")); err == nil {
		s.Rating = r
	}
	return s
}
