package interception

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"gatun/network"
	"gatun/network/packet"
)

// gre is what neither TCP, UDP nor ICMP is: a flow without ports.
var gre = packet.Flow{Proto: 47, Local: netip.AddrPortFrom(kernelLocal.Addr(), 0), Remote: netip.AddrPortFrom(kernelRemote.Addr(), 0)}

// wrapped is a packet of gre.
func wrapped(payload string) []byte {
	b := packet.AppendUDP(nil, &packet.IP{Src: gre.Local.Addr(), Dst: gre.Remote.Addr(), TTL: 64}, 0, 2048, []byte(payload))
	b[9], b[10], b[11] = byte(gre.Proto), 0, 0
	sum := packet.Fold(packet.Sum(b[:20], 0))
	b[10], b[11] = byte(sum>>8), byte(sum)
	return b
}

// refusal returns type and code of the ICMP error that is the next packet to the program.
func (l *kernelLab) refusal() [2]byte {
	l.t.Helper()
	bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
	if _, err := l.prog.Read(bufs, sizes); err != nil {
		l.t.Fatal(err)
	}
	if bufs[0][9] != byte(packet.ICMP) {
		l.t.Fatalf("a packet of protocol %d, want an ICMP error", bufs[0][9])
	}
	return [2]byte(bufs[0][20:22])
}

// settled waits until nothing of another protocol is held: what comes while a flow has no verdict is dropped.
func (l *kernelLab) settled() {
	l.t.Helper()
	waitFor(l.t, "nothing is held", func() bool { return l.stack.Counters().Others == 0 })
}

var protocolUnreachable = [2]byte{3, 2}

// TestOtherHandedBack: the kernel carries what is permitted, whatever filter/permanentVerdicts says; what
// strays in follows; what the kernel has forgotten is decided anew.
func TestOtherHandedBack(t *testing.T) {
	for name, yaml := range map[string]string{"": "", "permanentVerdicts off": "core: {releaseLevel: experimental}\nfilter: {permanentVerdicts: off}\n"} {
		t.Run(name, func(t *testing.T) {
			l := newKernelLab(t, yaml)
			l.write(wrapped("1"))
			l.eventually("handed back", "accept 192.0.2.1:0")
			k := l.gate.Table.Find(gre)
			if d := k.Decision(); !k.HandedBack() || d.Verdict != network.PermanentAccept {
				t.Errorf("handed back %t, %s", k.HandedBack(), d.Verdict)
			}
			if r := k.Report(); r.Proto != "47" || !r.HandedBack {
				t.Errorf("shown as protocol %s, handed back %t", r.Proto, r.HandedBack)
			}
			l.settled()
			l.write(wrapped("2"))
			l.eventually("a stray follows", "accept 192.0.2.1:0", "follow 192.0.2.1:0")
			for i, want := range []string{"1", "2"} {
				if got := l.kernel.sent[i]; !slices.Equal(got, wrapped(want)) {
					t.Errorf("sent %x, want %x", got, wrapped(want))
				}
			}
			l.gate.KernelCounted(gre, 40, 60)
			if sent, received := k.Bytes(); sent != 40 || received != 60 {
				t.Errorf("sent %d, received %d", sent, received)
			}
			l.kernel.mu.Lock()
			delete(l.kernel.accepted, gre)
			l.kernel.mu.Unlock()
			l.settled()
			l.write(wrapped("3"))
			waitFor(t, "a new link", func() bool { n := l.gate.Table.Find(gre); return n != nil && n != k && n.HandedBack() })
			if !k.Ended() {
				t.Error("the first link has not ended")
			}
			if decided, denied := l.gate.Counts(); decided != 2 || denied != 0 {
				t.Errorf("%d decisions, %d denials", decided, denied)
			}
		})
	}
}

// TestOtherDenied: the kernel hears nothing of what is denied, and the sender hears what the verdict says.
func TestOtherDenied(t *testing.T) {
	l := newKernelLab(t, "filter: {endpoints: [\"- 192.0.2.1 47\"]}\n")
	for range 2 {
		l.write(wrapped("x"))
		if got := l.refusal(); got != protocolUnreachable {
			t.Errorf("ICMP %v, want protocol unreachable", got)
		}
	}
	if decided, denied := l.gate.Counts(); decided != 1 || denied != 1 || len(l.kernel.did()) != 0 {
		t.Errorf("%d decisions, %d denials, the kernel did %v", decided, denied, l.kernel.did())
	}
	silent := newKernelLab(t, "filter: {endpoints: [\"-- 192.0.2.1\"]}\n")
	silent.write(wrapped("x"))
	waitFor(t, "decided", func() bool { decided, _ := silent.gate.Counts(); return decided == 1 })
	silent.write(segment(flagACK, 9, "x")) // of no connection: its reset is the next answer
	if flags := silent.answer(); flags&flagRST == 0 {
		t.Errorf("flags %#x, want the reset", flags)
	}
}

// TestOtherNotCarried: where nobody carries what is permitted, the sender is told, and so is who looks. A new
// look at the same policy changes nothing; another policy counts.
func TestOtherNotCarried(t *testing.T) {
	for name, err := range map[string]error{"full": errors.New("the table is full"), "no kernel": nil} {
		t.Run(name, func(t *testing.T) {
			l := newKernelLabWith(t, "filter: {endpoints: [\"+ 192.0.2.1\"]}\n", func(l *kernelLab) Owners { return l }, func(g *Gate) {
				if err == nil {
					g.Kernel = nil
				}
			})
			l.gate.Firewall.HandsBack = err != nil
			l.kernel.err = err
			for range 2 {
				l.write(wrapped("x"))
				if got := l.refusal(); got != protocolUnreachable {
					t.Errorf("ICMP %v, want protocol unreachable", got)
				}
			}
			k := l.gate.Table.Find(gre)
			l.gate.Reevaluate()
			d := k.Decision()
			if d.Verdict != network.Block || d.Code != network.CodeNotCarried || k.HandedBack() || d.Rule.Text == "" ||
				!strings.Contains(d.Reason, "protocol 47") || err != nil && !strings.Contains(d.Reason, err.Error()) {
				t.Errorf("%+v", d)
			}
			if why, trail := l.gate.Firewall.WhyLink(k); why != d || trail.Steps[len(trail.Steps)-1].Decider != "carrier" {
				t.Errorf("why: %+v %+v", why, trail.Steps)
			}
			l.gate.Firewall = master(t, "filter: {endpoints: [\"- 192.0.2.1\"]}\n")
			k.Comm().Cache(0, nil) // both policies have revision 1
			if l.gate.Reevaluate(); k.Decision().Code != network.CodeNotCarried {
				t.Errorf("the new policy: %+v: it is blocked as before", k.Decision())
			}
		})
	}
}

// TestOtherRevoked: a policy that forbids what the kernel carries takes it back, and the next packet is refused.
func TestOtherRevoked(t *testing.T) {
	l := newKernelLab(t, "")
	l.write(wrapped("x"))
	l.eventually("handed back", "accept 192.0.2.1:0")
	k := l.gate.Table.Find(gre)
	if closed := l.gate.Reevaluate(); closed != 0 {
		t.Errorf("the same policy closed %d", closed)
	}
	m := master(t, "filter: {endpoints: [\"- 192.0.2.1\"]}\n")
	m.HandsBack = true
	l.gate.Firewall = m
	k.Comm().Cache(0, nil) // both policies have revision 1
	if closed := l.gate.Reevaluate(); closed != 1 {
		t.Errorf("the new policy closed %d", closed)
	}
	l.eventually("revoked", "accept 192.0.2.1:0", "revoke 192.0.2.1:0")
	waitFor(t, "ended", k.Ended)
	l.settled()
	l.write(wrapped("y"))
	if got := l.refusal(); got != protocolUnreachable {
		t.Errorf("ICMP %v, want protocol unreachable", got)
	}
}
