package sandbox

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAddressesAreApartAndPrivate(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for _, a := range []netip.Addr{AddressV4(), AddressV6(), GatewayV4(), GatewayV6()} {
		if !a.IsPrivate() || seen[a] {
			t.Errorf("%s: want four different private addresses", a)
		}
		seen[a] = true
	}
	if got := GatewayV6().String(); got != "fd67:6174:756e::1" {
		t.Errorf("GatewayV6 is %s, which the manual does not say", got)
	}
}

func TestResolvConf(t *testing.T) {
	const header = "# written by gatun run: every query goes through the firewall\nnameserver 10.139.0.1\nnameserver fd67:6174:756e::1\n"
	for _, c := range []struct{ name, host, want string }{
		{"no file", "", ""},
		{"servers are ours", "nameserver 192.0.2.1\nnameserver ::1\n", ""},
		{"names stay", "search a.example b.example\noptions  ndots:2\tedns0\n", "search a.example b.example\noptions ndots:2 edns0\n"},
		{"domain", "domain a.example\n", "domain a.example\n"},
		{"sortlist names networks of the host", "sortlist 192.0.2.0\n", ""},
		{"comments and empty keywords", "# search x\n; options y\nsearch\n\noptions rotate", "options rotate\n"},
		{"order is kept: the last search wins", "search a\nsearch b\n", "search a\nsearch b\n"},
		{"CRLF", "search a.example\r\n", "search a.example\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := string(resolvConf([]byte(c.host), GatewayV4(), GatewayV6()))
			if diff := cmp.Diff(header+c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	huge := strings.Repeat("search a.example\n", 10000)
	if got := len(resolvConf([]byte(huge), GatewayV4())); got > maxResolvConf+200 {
		t.Errorf("%d bytes of a huge file are taken over", got)
	}
}

func TestExecErrorReadsLikeAShell(t *testing.T) {
	err := &ExecError{Code: ExitNotFound, Name: "nope", Reason: "no such file or directory"}
	if got := err.Error(); got != "nope: no such file or directory" {
		t.Errorf("got %q", got)
	}
}
