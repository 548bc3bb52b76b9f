package route

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Up calls no connection handed back that an earlier instance did, in whatever zone; bits of others, and
// other marks of ours, stay as they are.
func TestLiveConnectionsAreNotHandedBackAnyMore(t *testing.T) {
	live(t, func(t *testing.T, l *lab) {
		n := DefaultNames()
		const theirs, each = 0x1234, 2*marksPerSend + 3
		l.sh(fmt.Sprintf(`nft -f - <<'END'
		table inet t {
			chain zones {
				type filter hook output priority -300;
				udp dport 5000-5009 ct zone set 7
			}
			chain marks {
				type filter hook output priority 0;
				udp dport 5000-5999 ct mark set %#x
				udp dport 6000-6999 ct mark set %#x
			}
		}
END`, n.BackMark|theirs, n.OldMark|theirs))
		for _, far := range []string{far4, far6} {
			for i := range each {
				for _, first := range []int{5000, 6000} {
					to := netip.AddrPortFrom(netip.MustParseAddr(far), uint16(first+i))
					c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
					if err != nil {
						t.Fatal(err)
					}
					_, _ = c.Write([]byte("x")) // nobody listens
					_ = c.Close()
				}
			}
		}
		count := func(mark uint32) (count int) {
			for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
				flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range flows {
					if f.Forward.DstPort >= 5000 && f.Mark == mark {
						count++
					}
				}
			}
			return count
		}
		if back, old := count(n.BackMark|theirs), count(n.OldMark|theirs); back != 2*each || old != 2*each {
			t.Fatalf("control: %d and %d entries carry the marks, want %d each", back, old, 2*each)
		}
		if err := forgetHandedBack(n); err != nil {
			t.Fatal(err)
		}
		if back, none, old := count(n.BackMark|theirs), count(theirs), count(n.OldMark|theirs); back != 0 || none != 2*each || old != 2*each {
			t.Errorf("%d entries still carry the mark, %d lost it, %d carry another one; want 0, %d, %d", back, none, old, 2*each, 2*each)
		}
	})
}
