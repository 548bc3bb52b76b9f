package interception

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"gatun/network"
	"gatun/network/packet"
)

func (k *fakeKernel) Silence(blocked, dropped []packet.Flow, _ time.Duration) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range blocked {
		k.call("silence blocked", f, nil)
	}
	for _, f := range dropped {
		k.call("silence dropped", f, nil)
	}
	return k.err
}

func (k *fakeKernel) Hear(f packet.Flow) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.call("hear", f, nil)
	return nil
}

// countedFlow is a denied flow that has met so many packets.
type countedFlow struct {
	parkedFlow
	denied uint64
}

func (f *countedFlow) Denied() uint64 { return f.denied }

// TestInsisting: what counts is how much came since the last look, and what is quiet is left alone until
// its time is over.
func TestInsisting(t *testing.T) {
	table := network.NewTable(nowForTests)
	now := nowForTests()
	link := func(proto packet.Proto, port uint16, v network.Verdict) *network.Link {
		l, _ := table.Link(packet.Flow{Proto: proto, Local: netip.AddrPortFrom(kernelLocal.Addr(), port), Remote: kernelRemote})
		table.Decide(l, network.Decision{Verdict: v})
		return l
	}
	for name, c := range map[string]struct {
		proto   packet.Proto
		verdict network.Verdict
		denied  []uint64 // at each look
		apart   time.Duration
		want    []bool
	}{
		"few":        {packet.UDP, network.Block, []uint64{insists - 1, 2*insists - 2}, time.Second, []bool{false, false}},
		"many":       {packet.UDP, network.Block, []uint64{1, 1 + insists}, time.Second, []bool{false, true}},
		"quiet":      {packet.UDP, network.Drop, []uint64{insists, 3 * insists}, time.Second, []bool{true, false}},
		"loud again": {packet.UDP, network.PermanentDrop, []uint64{insists, 3 * insists}, quietFor, []bool{true, true}},
		"echo":       {packet.ICMP, network.Block, []uint64{9 * insists}, time.Second, []bool{false}},
		"permitted":  {packet.UDP, network.RerouteToNameserver, []uint64{9 * insists}, time.Second, []bool{false}},
	} {
		t.Run(name, func(t *testing.T) {
			var p parked
			l, f := link(c.proto, 1000, c.verdict), &countedFlow{}
			p.put(l, &place{flow: f, idle: deniedIdle})
			for i, n := range c.denied {
				f.denied = n
				all := p.insisting(now.Add(time.Duration(i)*c.apart), func(*network.Link) bool { return true })
				if got := slices.Contains(all, l); got != c.want[i] {
					t.Errorf("look %d: %t, want %t", i, got, c.want[i])
				}
			}
			table.End(l, "test")
		})
	}
	var p parked
	l := link(packet.UDP, 2000, network.Block)
	p.put(l, &place{flow: &countedFlow{denied: insists}, idle: deniedIdle})
	if all := p.insisting(now, func(*network.Link) bool { return false }); len(all) != 0 {
		t.Error("silenced though the settings forbid it")
	}
	if at := p.take(l); !at.quiet.IsZero() {
		t.Error("it counts as quiet though nobody silenced it")
	}
}

// newInsistLab has the clock by which the stack says when a flow was active last.
func newInsistLab(t *testing.T, rule string) *kernelLab {
	t.Helper()
	yaml := fmt.Sprintf("filter: {endpoints: [%q]}\n", rule)
	return newKernelLabWith(t, yaml, func(l *kernelLab) Owners { return l }, func(g *Gate) { g.Clock = time.Now })
}

// TestInsistingIsSilenced: the verdict becomes permanent, is told, and ends with the socket.
func TestInsistingIsSilenced(t *testing.T) {
	for rule, want := range map[string]network.Verdict{"-": network.PermanentBlock, "--": network.PermanentDrop} {
		t.Run(want.String(), func(t *testing.T) {
			l := newInsistLab(t, rule+" 192.0.2.1")
			verdict := func() network.Verdict {
				if k := l.gate.Table.Find(kernelUDP); k != nil {
					return k.Decision().Verdict
				}
				return network.Undecided
			}
			l.write(datagramOf("first"))
			waitFor(t, "the first is denied", func() bool { return verdict() == want.Effect() })
			waitFor(t, "it is silenced", func() bool {
				for range insists {
					l.write(datagramOf("on and on"))
				}
				return verdict() == want
			})
			k := l.gate.Table.Find(kernelUDP)
			if d := k.Decision(); d.Reason == "" || d.Rule.Text == "" || k.HandedBack() {
				t.Errorf("%+v, handed back %t", d, k.HandedBack())
			}
			silence := map[network.Verdict]string{network.PermanentBlock: "silence blocked ", network.PermanentDrop: "silence dropped "}[want] + kernelRemote.String()
			if did := l.kernel.did(); !slices.Equal(did, []string{silence}) {
				t.Errorf("did %q", did)
			}
			l.gate.SocketClosed(packet.UDP, kernelLocal)
			if did := l.kernel.did(); !slices.Equal(did, []string{silence, "hear " + kernelRemote.String()}) || !k.Ended() {
				t.Errorf("after the socket was closed: did %q, ended %t", did, k.Ended())
			}
		})
	}
}

// TestInsistingWithoutTheKernel: where the kernel cannot, the verdict stays what it is.
func TestInsistingWithoutTheKernel(t *testing.T) {
	l := newInsistLab(t, "- 192.0.2.1")
	l.kernel.err = errors.New("no egress hook")
	waitFor(t, "it was tried", func() bool {
		for range insists {
			l.write(datagramOf("on and on"))
		}
		return len(l.kernel.did()) > 0
	})
	if d := l.gate.Table.Find(kernelUDP).Decision(); d.Verdict != network.Block {
		t.Errorf("%s, want block", d.Verdict)
	}
}
