package netenv

import (
	"fmt"
	"slices"
)

// OnlineState says how much of the Internet can be reached; the package says how it is judged.
type OnlineState uint8

// The states, from knowing nothing to all that is wanted.
const (
	Unknown    OnlineState = iota
	Offline                // no network
	Limited                // a network that does not lead to the Internet, as far as is known
	Portal                 // a captive portal answers in the Internet's place
	SemiOnline             // the Internet, but something of it is missing
	Online
)

func onlineStates() []string {
	return []string{"unknown", "offline", "limited", "portal", "semi-online", "online"}
}

// String returns the state as the API spells it.
func (s OnlineState) String() string {
	if names := onlineStates(); int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// MarshalText spells the state.
func (s OnlineState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *OnlineState) UnmarshalText(b []byte) error {
	i := slices.Index(onlineStates(), string(b))
	if i < 0 {
		return fmt.Errorf("want unknown, offline, limited, portal, semi-online or online, got %q", b)
	}
	*s = OnlineState(i)
	return nil
}

// way is where packets for the Internet can go, as far as this machine is concerned.
type way uint8

const (
	nowhere way = iota
	local       // to the neighbours only
	out
)

// finding is what came of trying something.
type finding uint8

const (
	unasked finding = iota // nobody tried, or nobody may
	failed
	succeeded
	foreign // something else answered; only of the page
)

// evidence is what the state is judged from.
type evidence struct {
	way                way
	page, names, conns finding
}

// state is the table in the package's documentation.
func (e evidence) state() OnlineState {
	switch {
	case e.way == nowhere:
		return Offline
	case e.way == local:
		return Limited
	case e.page == foreign:
		return Portal
	case e.page == succeeded && e.names == failed:
		return SemiOnline
	case e.page == succeeded:
		return Online
	case e.page == failed && e.conns == succeeded:
		return SemiOnline
	case e.page == failed:
		return Limited
	case e.conns == succeeded && e.names == failed:
		return SemiOnline
	case e.conns == succeeded:
		return Online
	case e.conns == failed, e.names == failed:
		return Limited
	default:
		return Unknown
	}
}

// way reads the way out from what the system says.
func (s Snapshot) way() way {
	if s.DefaultRoute {
		return out
	}
	for _, i := range s.Interfaces {
		if i.Up && i.Kind != kindLoopback && reaches(i.Addrs) {
			return local
		}
	}
	return nowhere
}

// elsewhere reports whether o is another network, of which nothing is known yet, and not only
// news of the same one: an address that was renewed, a gateway whose MAC was learnt.
func (s Snapshot) elsewhere(o Snapshot) bool {
	return s.way() != o.way() || !slices.Equal(s.Nameservers, o.Nameservers) ||
		!slices.EqualFunc(s.Gateways, o.Gateways, func(a, b Gateway) bool {
			return a.Addr == b.Addr && a.Interface == b.Interface && (a.MAC == b.MAC || a.MAC == "" || b.MAC == "")
		})
}
