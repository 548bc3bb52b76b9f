package status

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
	_ "time/tzdata"

	"gatun/config"
	"gatun/netenv"
	"pgregory.net/rapid"
)

const (
	homeMAC  = "02:00:5e:10:00:01"
	otherMAC = "02:00:5e:10:00:02"
)

// home is a laptop on its cable at home, with the Wi-Fi of a café beside it, and what is off.
func home() netenv.Snapshot {
	prefix := func(texts ...string) (out []netip.Prefix) {
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	return netenv.Snapshot{
		Interfaces: []netenv.Interface{
			{Name: "lo", Index: 1, Kind: "loopback", Up: true, Addrs: prefix("127.0.0.1/8", "::1/128")},
			{Name: "eth0", Index: 2, Kind: "ethernet", Up: true, Addrs: prefix("192.0.2.7/24", "fe80::7/64", "2001:db8:1::7/64")},
			{Name: "wlan0", Index: 3, Kind: "wireless", Up: true, Addrs: prefix("198.51.100.7/24")},
			{Name: "eth1", Index: 4, Kind: "ethernet", Addrs: prefix("203.0.113.7/24")},
		},
		Gateways: []netenv.Gateway{
			{Addr: netip.MustParseAddr("192.0.2.1"), MAC: homeMAC, Interface: "eth0"},
			{Addr: netip.MustParseAddr("fe80::1"), MAC: homeMAC, Interface: "eth0"},
			{Addr: netip.MustParseAddr("198.51.100.1"), MAC: otherMAC, Interface: "wlan0"},
			{Addr: netip.MustParseAddr("198.51.100.2"), Interface: "wlan0"},
			{Addr: netip.MustParseAddr("203.0.113.1"), MAC: "02:00:5e:10:00:03", Interface: "eth1"},
		},
	}
}

func is(b bool) *bool { return &b }

func at(clock string) time.Time {
	t, err := time.ParseInLocation("15:04:05", clock, time.UTC)
	if err != nil {
		panic(err)
	}
	return t.AddDate(2026, 0, 0)
}

func TestEveryConditionAlone(t *testing.T) {
	addr, net := netip.MustParseAddr, netip.MustParsePrefix
	noon := at("12:00:00")
	vpn := home()
	vpn.VPN = true
	known := func(o netenv.OnlineState, suffixes ...string) netenv.Snapshot {
		env := home()
		env.Online, env.DNSSuffixes = o, suffixes
		return env
	}
	for _, c := range []struct {
		name string
		c    config.NetworkCondition
		env  netenv.Snapshot
		want bool
	}{
		{"none", config.NetworkCondition{}, home(), true},
		{"none, no network", config.NetworkCondition{}, netenv.Snapshot{}, true},
		{"interface", config.NetworkCondition{Interface: "eth0"}, home(), true},
		{"interface that is down", config.NetworkCondition{Interface: "eth1"}, home(), false},
		{"interface that is not there", config.NetworkCondition{Interface: "eth9"}, home(), false},
		{"part of a name", config.NetworkCondition{Interface: "eth"}, home(), false},
		{"gateway", config.NetworkCondition{Gateway: addr("192.0.2.1")}, home(), true},
		{"gateway of IPv6", config.NetworkCondition{Gateway: addr("fe80::1")}, home(), true},
		{"gateway with its zone", config.NetworkCondition{Gateway: addr("fe80::1%eth0")}, home(), true},
		{"gateway with another zone", config.NetworkCondition{Gateway: addr("fe80::1%wlan0")}, home(), false},
		{"another gateway", config.NetworkCondition{Gateway: addr("192.0.2.2")}, home(), false},
		{"gateway of what is down", config.NetworkCondition{Gateway: addr("203.0.113.1")}, home(), false},
		{"MAC", config.NetworkCondition{GatewayMAC: homeMAC}, home(), true},
		{"another MAC", config.NetworkCondition{GatewayMAC: "02:00:5e:10:00:09"}, home(), false},
		{"MAC of what is down", config.NetworkCondition{GatewayMAC: "02:00:5e:10:00:03"}, home(), false},
		{"address", config.NetworkCondition{Address: net("192.0.2.0/24")}, home(), true},
		{"address of IPv6", config.NetworkCondition{Address: net("2001:db8:1::/48")}, home(), true},
		{"another address", config.NetworkCondition{Address: net("192.0.3.0/24")}, home(), false},
		{"address of what is down", config.NetworkCondition{Address: net("203.0.113.0/24")}, home(), false},
		{"one address", config.NetworkCondition{Address: net("192.0.2.7/32")}, home(), true},
		{"all addresses", config.NetworkCondition{Address: net("0.0.0.0/0")}, home(), true},
		{"all addresses, no network", config.NetworkCondition{Address: net("0.0.0.0/0")}, netenv.Snapshot{}, false},
		{"VPN", config.NetworkCondition{VPN: is(true)}, vpn, true},
		{"VPN, without", config.NetworkCondition{VPN: is(true)}, home(), false},
		{"no VPN", config.NetworkCondition{VPN: is(false)}, home(), true},
		{"no VPN, with", config.NetworkCondition{VPN: is(false)}, vpn, false},
		{"time", config.NetworkCondition{Time: "08:00-18:00"}, home(), true},
		{"another time", config.NetworkCondition{Time: "22:00-06:00"}, home(), false},
		{"what is no time", config.NetworkCondition{Time: "noon"}, home(), false},
		{"SSID", config.NetworkCondition{SSID: "home"}, home(), false},
		{"DNS suffix", config.NetworkCondition{DNSSuffix: "home.arpa"}, known(netenv.Online, "corp.example", "home.arpa"), true},
		{"another DNS suffix", config.NetworkCondition{DNSSuffix: "home.arpa"}, known(netenv.Online, "corp.example"), false},
		{"a DNS suffix above it", config.NetworkCondition{DNSSuffix: "corp.example"}, known(netenv.Online, "eu.corp.example"), false},
		{"a DNS suffix, where there is none", config.NetworkCondition{DNSSuffix: "home.arpa"}, home(), false},
		{"portal", config.NetworkCondition{Portal: is(true)}, known(netenv.Portal), true},
		{"portal, online", config.NetworkCondition{Portal: is(true)}, known(netenv.Online), false},
		{"portal, nobody looked", config.NetworkCondition{Portal: is(true)}, home(), false},
		{"no portal", config.NetworkCondition{Portal: is(false)}, known(netenv.Portal), false},
		{"no portal, online", config.NetworkCondition{Portal: is(false)}, known(netenv.Online), true},
		{"no portal, offline", config.NetworkCondition{Portal: is(false)}, known(netenv.Offline), true},
		{"no portal, nobody looked", config.NetworkCondition{Portal: is(false)}, home(), false},
	} {
		if got := Holds(&c.c, c.env, noon); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// What holds for two networks together holds for neither: the attack is a network that has one
// of the trusted one's marks while the other mark comes from elsewhere.
func TestConditionsAreAboutOneNetwork(t *testing.T) {
	addr, net := netip.MustParseAddr, netip.MustParsePrefix
	for _, c := range []struct {
		name string
		c    config.NetworkCondition
		want bool
	}{
		{"gateway and its MAC", config.NetworkCondition{Gateway: addr("192.0.2.1"), GatewayMAC: homeMAC}, true},
		{"gateway and another's MAC", config.NetworkCondition{Gateway: addr("198.51.100.1"), GatewayMAC: homeMAC}, false},
		{"gateway whose MAC is unknown", config.NetworkCondition{Gateway: addr("198.51.100.2"), GatewayMAC: otherMAC}, false},
		{"interface and gateway", config.NetworkCondition{Interface: "eth0", Gateway: addr("192.0.2.1")}, true},
		{"interface and another's gateway", config.NetworkCondition{Interface: "wlan0", Gateway: addr("192.0.2.1")}, false},
		{"interface and address", config.NetworkCondition{Interface: "wlan0", Address: net("198.51.100.0/24")}, true},
		{"interface and another's address", config.NetworkCondition{Interface: "wlan0", Address: net("192.0.2.0/24")}, false},
		{"address and another's MAC", config.NetworkCondition{Address: net("198.51.100.0/24"), GatewayMAC: homeMAC}, false},
	} {
		if got := Holds(&c.c, home(), at("12:00:00")); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// Every combination of fields, each once as it is at home and once as it is not: all hold or
// the condition does not.
func TestEveryCombination(t *testing.T) {
	addr, net := netip.MustParseAddr, netip.MustParsePrefix
	type field struct {
		yes, no func(*config.NetworkCondition)
	}
	fields := []field{
		{func(c *config.NetworkCondition) { c.Interface = "eth0" }, func(c *config.NetworkCondition) { c.Interface = "eth9" }},
		{func(c *config.NetworkCondition) { c.Gateway = addr("192.0.2.1") }, func(c *config.NetworkCondition) { c.Gateway = addr("192.0.2.99") }},
		{func(c *config.NetworkCondition) { c.GatewayMAC = homeMAC }, func(c *config.NetworkCondition) { c.GatewayMAC = otherMAC[:16] + "9" }},
		{func(c *config.NetworkCondition) { c.Address = net("192.0.2.0/24") }, func(c *config.NetworkCondition) { c.Address = net("10.0.0.0/8") }},
		{func(c *config.NetworkCondition) { c.VPN = is(false) }, func(c *config.NetworkCondition) { c.VPN = is(true) }},
		{func(c *config.NetworkCondition) { c.Time = "11:00-13:00" }, func(c *config.NetworkCondition) { c.Time = "13:00-11:00" }},
	}
	n := 1
	for range fields {
		n *= 3
	}
	for code := range n {
		var c config.NetworkCondition
		want := true
		for rest, i := code, 0; i < len(fields); i, rest = i+1, rest/3 {
			switch rest % 3 {
			case 1:
				fields[i].yes(&c)
			case 2:
				fields[i].no(&c)
				want = false
			}
		}
		if got := Holds(&c, home(), at("12:00:00")); got != want {
			t.Errorf("%+v: %v, want %v", c, got, want)
		}
		for _, unknown := range []func(*config.NetworkCondition){
			func(c *config.NetworkCondition) { c.SSID = "home" },
			func(c *config.NetworkCondition) { c.DNSSuffix = "home.arpa" },
			func(c *config.NetworkCondition) { c.Portal = is(false) },
		} {
			d := c
			unknown(&d)
			if Holds(&d, home(), at("12:00:00")) {
				t.Errorf("%+v holds although it asks what is not known", d)
			}
		}
	}
}

func TestTimeOfDay(t *testing.T) {
	for _, c := range []struct {
		window, clock string
		want          bool
		next          string // the clock at the next change
	}{
		{"22:00-06:00", "21:59:59", false, "22:00:00"},
		{"22:00-06:00", "22:00:00", true, "06:00:00"},
		{"22:00-06:00", "00:00:00", true, "06:00:00"},
		{"22:00-06:00", "05:59:59", true, "06:00:00"},
		{"22:00-06:00", "06:00:00", false, "22:00:00"},
		{"08:00-18:00", "07:59:59", false, "08:00:00"},
		{"08:00-18:00", "08:00:00", true, "18:00:00"},
		{"08:00-18:00", "18:00:00", false, "08:00:00"},
		{"18:00-24:00", "23:59:59", true, "00:00:00"},
		{"18:00-24:00", "00:00:00", false, "18:00:00"},
		{"00:00-24:00", "13:00:00", true, "00:00:00"},
		{"12:00-00:00", "23:59:00", true, "00:00:00"},
		{"12:00-00:00", "00:00:00", false, "12:00:00"},
	} {
		n := config.NetworkCondition{Time: c.window}
		now := at(c.clock)
		if got := Holds(&n, netenv.Snapshot{}, now); got != c.want {
			t.Errorf("%s at %s: %v, want %v", c.window, c.clock, got, c.want)
		}
		next := changes(&n, now)
		if got := next.Format("15:04:05"); got != c.next || !next.After(now) || next.Sub(now) > day {
			t.Errorf("%s at %s: next %s (%v later), want %s", c.window, c.clock, got, next.Sub(now), c.next)
		}
	}
	if next := changes(&config.NetworkCondition{Interface: "eth0"}, at("12:00:00")); !next.IsZero() {
		t.Errorf("without a time there is a next change at %v", next)
	}
}

// When clocks are put forward or back, windows follow what the clock shows.
func TestDaylightSaving(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	utc := func(s string) time.Time {
		v, err := time.Parse(time.DateTime, s)
		if err != nil {
			t.Fatal(err)
		}
		return v.In(berlin)
	}
	for _, c := range []struct {
		name, window, from string
		holds              bool
		next               string
	}{
		// 2026-03-29 01:00 UTC: 02:00 becomes 03:00.
		{"before spring", "02:30-03:30", "2026-03-29 00:30:00", false, "2026-03-29 01:00:00"},
		{"begins in the missing hour", "02:30-03:30", "2026-03-29 01:00:00", true, "2026-03-29 01:30:00"},
		{"a window that is missing", "02:10-02:50", "2026-03-29 00:30:00", false, "2026-03-29 01:00:00"},
		{"after the missing window", "02:10-02:50", "2026-03-29 01:00:00", false, "2026-03-30 00:10:00"},
		// 2026-10-25 01:00 UTC: 03:00 becomes 02:00.
		{"before autumn", "02:30-06:00", "2026-10-25 00:00:00", false, "2026-10-25 00:30:00"},
		{"first half past two", "02:30-06:00", "2026-10-25 00:30:00", true, "2026-10-25 01:00:00"},
		{"two o'clock again", "02:30-06:00", "2026-10-25 01:00:00", false, "2026-10-25 01:30:00"},
		{"second half past two", "02:30-06:00", "2026-10-25 01:30:00", true, "2026-10-25 05:00:00"},
	} {
		n := config.NetworkCondition{Time: c.window}
		now := utc(c.from)
		if got := Holds(&n, netenv.Snapshot{}, now); got != c.holds {
			t.Errorf("%s: holds %v, want %v", c.name, got, c.holds)
		}
		if next := changes(&n, now); !next.Equal(utc(c.next)) {
			t.Errorf("%s: next %s, want %s", c.name, next.UTC().Format(time.DateTime), c.next)
		}
	}
}

// momentGen draws moments in zones with all sorts of offsets, many of them near a change.
func momentGen() *rapid.Generator[time.Time] {
	return rapid.Custom(func(t *rapid.T) time.Time {
		zone := rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu",
			"Pacific/Apia", "Africa/Casablanca", "America/St_Johns"}).Draw(t, "zone")
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(rapid.Int64Range(1_100_000_000, 2_000_000_000).Draw(t, "second"), rapid.Int64Range(0, 999_999_999).Draw(t, "nano")).In(loc)
		if _, end := now.ZoneBounds(); !end.IsZero() && rapid.Bool().Draw(t, "near a change") {
			now = end.Add(time.Duration(rapid.Int64Range(-int64(day), int64(day)).Draw(t, "offset")))
		}
		return now
	})
}

func windowGen() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		from := rapid.IntRange(0, 24*60-1).Draw(t, "from")
		to := rapid.IntRange(0, 24*60).Filter(func(to int) bool { return to != from }).Draw(t, "to")
		return fmt.Sprintf("%02d:%02d-%02d:%02d", from/60, from%60, to/60, to%60)
	})
}

// The time is as texts compare; Next is never past, at most a day away, and nothing changes
// before it.
func TestNextIsTheNextChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := momentGen().Draw(t, "now")
		c := config.NetworkCondition{Time: windowGen().Draw(t, "window")}
		from, to := c.Time[:5], c.Time[6:]
		oracle := func(at time.Time) bool {
			clock := at.Format("15:04")
			if from < to {
				return from <= clock && clock < to
			}
			return from <= clock || clock < to
		}
		next := changes(&c, now)
		if !next.After(now) || next.Sub(now) > day {
			t.Fatalf("next is %v after now", next.Sub(now))
		}
		want := oracle(now)
		for i := range 200 {
			then := now.Add(next.Sub(now) / 200 * time.Duration(i))
			if Holds(&c, netenv.Snapshot{}, then) != want || oracle(then) != want {
				t.Fatalf("%s: holds %v at %v, but not at %v, before %v", c.Time, want, now, then, next)
			}
		}
		if last := next.Add(-1); Holds(&c, netenv.Snapshot{}, last) != want {
			t.Fatalf("it changes before %v", next)
		}
		if Holds(&c, netenv.Snapshot{}, next) != oracle(next) {
			t.Fatalf("at %v it is wrong", next)
		}
	})
}
