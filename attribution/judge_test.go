package attribution

import (
	"net/netip"
	"testing"

	gopsnet "github.com/shirou/gopsutil/v3/net"

	"gatun/network/packet"
)

func picture(pid, parent int, path string, start, layout uint64, args ...string) *image {
	return &image{process: &Process{PID: pid, Parent: parent, Path: path, Args: args, Kind: KindProgram},
		start: start, layout: [4]uint64{layout, layout, layout, layout}}
}

func TestJudge(t *testing.T) {
	const self = 99
	master := picture(10, 1, "/usr/sbin/nginx", 500, 7, "nginx: master")
	worker := picture(11, 10, "/usr/sbin/nginx", 500, 7, "nginx: worker")
	sibling := picture(9, 10, "/usr/sbin/nginx", 501, 7, "nginx: worker") // PIDs have wrapped around
	python := picture(20, 1, "/usr/bin/python3", 600, 1, "python3", "a.py")
	other := picture(21, 20, "/usr/bin/python3", 601, 2, "python3", "b.py")
	own, child := picture(self, 1, "/usr/bin/gatun", 300, 5, "gatun", "up"), picture(100, self, "/usr/bin/gatun", 700, 5, "gatun", "up")
	unknown := &image{process: &Process{PID: 30}}
	blank := &image{process: &Process{PID: 31}}
	for name, test := range map[string]struct {
		holders []*image
		sockets int
		pid     int
		c       Confidence
		cause   string
	}{
		"nobody":                          {nil, 1, 0, None, CauseNoHolder},
		"one":                             {[]*image{python}, 1, 20, Exact, CauseOne},
		"one with two sockets":            {[]*image{python}, 2, 20, Exact, CauseOne},
		"ourselves":                       {[]*image{own}, 1, self, Exact, CauseSelf},
		"ourselves between fork and exec": {[]*image{child, own}, 1, self, Exact, CauseSelf},
		"a renamed worker":                {[]*image{worker, master}, 1, 10, Inherited, CauseInherited},
		"parent first":                    {[]*image{master, worker}, 1, 10, Inherited, CauseInherited},
		"same tick, wrapped":              {[]*image{sibling, worker, master}, 1, 10, Inherited, CauseInherited},
		"siblings without their parent":   {[]*image{sibling, worker}, 1, 11, Inherited, CauseInherited},
		"two scripts of one interpreter":  {[]*image{python, other}, 1, 0, Ambiguous, CauseShared},
		"two programs":                    {[]*image{python, master}, 1, 0, Ambiguous, CauseShared},
		"one cannot be read":              {[]*image{python, unknown}, 1, 0, Ambiguous, CauseShared},
		"two cannot be read":              {[]*image{blank, unknown}, 1, 0, Ambiguous, CauseShared},
		"two sockets of two processes":    {[]*image{master, worker}, 2, 0, Ambiguous, CauseManySockets},
	} {
		t.Run(name, func(t *testing.T) {
			o := judge(test.holders, test.sockets, self)
			if o.Process == nil || o.Process.PID != test.pid || o.Confidence != test.c || o.Cause != test.cause {
				t.Errorf("got %+v of %+v", o, o.Process)
			}
			named := o.Confidence == Exact || o.Confidence == Inherited
			if named == (o.Process.Kind == KindUnidentified) {
				t.Errorf("confidence %s with kind %d", o.Confidence, o.Process.Kind)
			}
		})
	}
}

func TestPidsOf(t *testing.T) {
	at := func(ip string, port uint32) gopsnet.Addr { return gopsnet.Addr{IP: ip, Port: port} }
	tcp := packet.Flow{Proto: packet.TCP, Local: netip.MustParseAddrPort("10.0.0.2:40000"), Remote: netip.MustParseAddrPort("192.0.2.1:443")}
	udp := tcp
	udp.Proto = packet.UDP
	for name, test := range map[string]struct {
		f    packet.Flow
		row  gopsnet.ConnectionStat
		want int
	}{
		"tcp":                 {tcp, gopsnet.ConnectionStat{Laddr: at("10.0.0.2", 40000), Raddr: at("192.0.2.1", 443)}, 1},
		"tcp mapped":          {tcp, gopsnet.ConnectionStat{Laddr: at("::ffff:10.0.0.2", 40000), Raddr: at("::ffff:192.0.2.1", 443)}, 1},
		"tcp elsewhere":       {tcp, gopsnet.ConnectionStat{Laddr: at("10.0.0.2", 40000), Raddr: at("192.0.2.2", 443)}, 0},
		"tcp listener":        {tcp, gopsnet.ConnectionStat{Laddr: at("10.0.0.2", 40000), Status: "LISTEN"}, 0},
		"udp any":             {udp, gopsnet.ConnectionStat{Laddr: at("0.0.0.0", 40000)}, 1},
		"udp dual":            {udp, gopsnet.ConnectionStat{Laddr: at("::", 40000)}, 1},
		"udp darwin any":      {udp, gopsnet.ConnectionStat{Laddr: at("*", 40000)}, 1},
		"udp other address":   {udp, gopsnet.ConnectionStat{Laddr: at("10.0.0.3", 40000)}, 0},
		"udp connected":       {udp, gopsnet.ConnectionStat{Laddr: at("10.0.0.2", 40000), Raddr: at("192.0.2.1", 443)}, 1},
		"udp connected apart": {udp, gopsnet.ConnectionStat{Laddr: at("10.0.0.2", 40000), Raddr: at("192.0.2.1", 444)}, 0},
		"udp other port":      {udp, gopsnet.ConnectionStat{Laddr: at("10.0.0.2", 40001)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			test.row.Pid = 5
			if got := pidsOf(test.f, []gopsnet.ConnectionStat{test.row, test.row}); len(got) != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
