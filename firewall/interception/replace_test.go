package interception

import (
	"net/netip"
	"testing"
	"time"

	"gatun/network"
	"gatun/network/packet"
)

// The last bytes of a connection reach the server although its tuple is wanted again; what does
// not end by itself is ended.
func TestReplace(t *testing.T) {
	gone := make(chan struct{})
	close(gone)
	for _, tt := range []struct {
		name   string
		ends   time.Duration // when the old connection ends by itself; 0: never
		gone   <-chan struct{}
		killed bool
		within time.Duration
	}{
		{"ends by itself", 50 * time.Millisecond, nil, false, replaceWithin},
		{"never ends", 0, nil, true, 3 * replaceWithin},
		{"the program gave up", 0, gone, true, replaceWithin},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := &Gate{Table: network.NewTable(time.Now)}
			f := packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("10.0.0.1:4000"), Remote: netip.MustParseAddrPort("192.0.2.1:80")}
			l, _ := g.Table.Link(f)
			killed := false
			l.OnKill(func(string) { killed = true })
			begin := time.Now()
			if tt.ends > 0 {
				time.AfterFunc(tt.ends, func() { g.Table.End(l, "server closed") })
			}
			g.replace(l, tt.gone)
			if took := time.Since(begin); killed != tt.killed || took > tt.within || took < tt.ends {
				t.Errorf("killed %v after %v, want %v within %v", killed, took, tt.killed, tt.within)
			}
			if _, known := g.Table.Link(f); known {
				t.Error("the old link is still live")
			}
		})
	}
}
