package status

import (
	"net/url"
	"strings"
	"time"

	"gatun/config"
	"gatun/netenv"
)

// Judge says what the configuration makes of the network at that moment. It is pure: between
// now and Next the same configuration and the same networks give the same Rating and Holds.
//
// A rating that a person set for now (at run time, by a flag or the environment) beats the
// rules. The rules beat the rating of the human's file, which is for networks that no rule
// knows. now is in the time zone of the conditions on the time of day.
func Judge(cfg *config.Config, env netenv.Snapshot, now time.Time) State {
	v := cfg.Value("network/rating")
	s := State{Rating: rating(cfg.String("network/rating")), Origin: v.Origin.String(), Holds: map[string]bool{}}
	if s.Portal = behindPortal(env); s.Portal {
		s.PortalHost = hostOf(env.PortalURL)
	}
	if !byHand(v.Origin.Kind) {
		for _, r := range cfg.RatingRules() {
			s.Next = sooner(s.Next, changes(&r.When, now))
			if !Holds(&r.When, env, now) {
				continue
			}
			at := config.Position{File: r.File, Line: r.Line}
			s.Rating, s.Origin = rating(r.Rating), "rule "+at.String()
			break
		}
	}
	for _, p := range cfg.Profiles() {
		if p.When != nil {
			s.Holds[p.Name] = Holds(p.When, env, now)
			s.Next = sooner(s.Next, changes(p.When, now))
		}
	}
	return s
}

// hostOf is the host of a page, in the form in which names and addresses are compared.
func hostOf(page string) string {
	u, err := url.Parse(page)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
}

// byHand reports whether a person said so for now, not for all networks.
func byHand(k config.OriginKind) bool {
	return k == config.FromRuntime || k == config.FromFlag || k == config.FromEnv
}

// rating reads what config has checked. What cannot be read is not trusted.
func rating(text string) Rating {
	r, err := ParseRating(text)
	if err != nil {
		return Danger
	}
	return r
}

// sooner returns the earlier of two times, where zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
