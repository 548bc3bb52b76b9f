package interception

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"gatun/firewall"
	"gatun/network"
	"gatun/network/packet"
	"gatun/stack"
	"gatun/tun"
)

// fakeKernel carries whatever it is given, unless err says otherwise.
type fakeKernel struct {
	mu       sync.Mutex
	err      error
	during   func(packet.Flow) // happens before Accept returns
	accepted map[packet.Flow]bool
	calls    []string
	sent     [][]byte
	together []int // how many flows came at once
	relayed  []packet.Flow
}

func (k *fakeKernel) call(what string, f packet.Flow, b []byte) {
	k.calls = append(k.calls, what+" "+f.Remote.String())
	if b != nil {
		k.sent = append(k.sent, slices.Clone(b))
	}
}

func (k *fakeKernel) Accept(f packet.Flow, b []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.during != nil {
		k.during(f)
	}
	if k.err != nil {
		return k.err
	}
	k.accepted[f] = true
	k.call("accept", f, b)
	return nil
}

func (k *fakeKernel) AcceptAll(flows []packet.Flow, held [][]byte, each func(int, error)) {
	k.mu.Lock()
	k.together = append(k.together, len(flows))
	k.mu.Unlock()
	for i, f := range flows {
		each(i, k.Accept(f, held[i]))
	}
}

func (k *fakeKernel) Send(f packet.Flow, b []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.call("send", f, b)
	return nil
}

func (k *fakeKernel) Follow(f packet.Flow, b []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.accepted[f] {
		return errors.New("over")
	}
	k.call("follow", f, b)
	return nil
}

func (k *fakeKernel) Revoke(f packet.Flow) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.accepted, f)
	k.call("revoke", f, nil)
	return nil
}

func (k *fakeKernel) Forget(f packet.Flow) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.accepted, f)
	k.call("forget", f, nil)
	return nil
}

func (k *fakeKernel) Relayed(f packet.Flow) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.relayed = append(k.relayed, f)
	return nil
}

func (k *fakeKernel) did() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.calls)
}

// kernelLab is a Gate behind a stack whose device the test holds, with a kernel that takes flows.
type kernelLab struct {
	*redirectLab
	kernel *fakeKernel
	prog   *tun.PipeEnd
	stack  *stack.Stack
	dialed chan netip.AddrPort
}

func newKernelLab(t *testing.T, yaml string) *kernelLab {
	t.Helper()
	return newKernelLabOf(t, yaml, func(l *kernelLab) Owners { return l })
}

func newKernelLabOf(t *testing.T, yaml string, owners func(*kernelLab) Owners) *kernelLab {
	t.Helper()
	return newKernelLabWith(t, yaml, owners, func(*Gate) {})
}

func newKernelLabWith(t *testing.T, yaml string, owners func(*kernelLab) Owners, change func(*Gate)) *kernelLab {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	l := &kernelLab{kernel: &fakeKernel{accepted: map[packet.Flow]bool{}}, dialed: make(chan netip.AddrPort, 16)}
	l.redirectLab = &redirectLab{t: t, owner: prog("/usr/bin/a")}
	m := master(t, yaml)
	m.HandsBack = true
	l.gate = &Gate{
		Table: network.NewTable(nowForTests), Firewall: m, Owners: owners(l), Names: l, Nameserver: l, Log: zap.NewNop(),
		Prompts: firewall.NewPrompts(nowForTests), Clock: nowForTests, Kernel: l.kernel,
	}
	change(l.gate)
	out := &fakeNet{dial: func(context.Context) (*fakeUp, error) { return nil, syscall.ECONNREFUSED }}
	l.gate.Relay = NewRelay(out, zap.NewNop(), func(k *network.Link, cause string) { l.gate.Ended(k, cause) })
	dev, program := tun.Pipe(1500)
	l.prog = program
	s, err := stack.New(stack.Options{Device: dev, Handler: l.gate, Local: func(netip.Addr) bool { return true }, Elsewhere: l.gate.CarriedElsewhere})
	if err != nil {
		t.Fatal(err)
	}
	l.stack = s
	ctx, cancel := context.WithCancel(context.Background())
	l.gate.Attach(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.gate.Run(ctx) })
	wg.Go(func() { _ = l.gate.Relay.Run(ctx) })
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("stack: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait(); program.Close() })
	return l
}

var (
	kernelLocal  = netip.MustParseAddrPort("10.0.0.2:40000")
	kernelRemote = netip.MustParseAddrPort("192.0.2.1:443")
	kernelUDP    = packet.Flow{Proto: packet.UDP, Local: kernelLocal, Remote: kernelRemote}
	kernelTCP    = packet.Flow{Proto: packet.TCP, Local: kernelLocal, Remote: kernelRemote}
)

func (l *kernelLab) write(b []byte) {
	l.t.Helper()
	if _, err := l.prog.Write([][]byte{b}); err != nil {
		l.t.Fatal(err)
	}
}

func datagramOf(payload string) []byte {
	return packet.AppendUDP(nil, &packet.IP{Src: kernelLocal.Addr(), Dst: kernelRemote.Addr(), TTL: 64}, kernelLocal.Port(), kernelRemote.Port(), []byte(payload))
}

const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// segment is a TCP segment without options.
func segment(flags byte, seq uint32, payload string) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0], b[8], b[9] = 0x45, 64, byte(packet.TCP)
	binary.BigEndian.PutUint16(b[2:], uint16(40+len(payload)))
	copy(b[12:], kernelLocal.Addr().AsSlice())
	copy(b[16:], kernelRemote.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], packet.Fold(packet.Sum(b[:20], 0)))
	tcp := b[20:]
	binary.BigEndian.PutUint16(tcp, kernelLocal.Port())
	binary.BigEndian.PutUint16(tcp[2:], kernelRemote.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12], tcp[13], tcp[14] = 5<<4, flags, 0xff
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[36:], packet.Fold(packet.Sum(b[20:], packet.PseudoSum(kernelLocal.Addr(), kernelRemote.Addr(), packet.TCP, len(b)-20))))
	return b
}

func (l *kernelLab) eventually(what string, want ...string) {
	l.t.Helper()
	waitFor(l.t, what, func() bool { return slices.Equal(l.kernel.did(), want) })
}

// answer returns the TCP flags of the next packet to the program.
func (l *kernelLab) answer() byte {
	l.t.Helper()
	bufs, sizes := [][]byte{make([]byte, 2048)}, make([]int, 1)
	if _, err := l.prog.Read(bufs, sizes); err != nil {
		l.t.Fatal(err)
	}
	return bufs[0][33]
}

// TestHandBackUDP: what is held goes on in order, what strays in follows, and nothing is decided
// again.
func TestHandBackUDP(t *testing.T) {
	l := newKernelLab(t, "")
	for _, d := range []string{"1", "2", "3"} {
		l.write(datagramOf(d))
	}
	waitFor(t, "three datagrams went on", func() bool { return len(l.kernel.did()) == 3 })
	k := l.gate.Table.Find(kernelUDP)
	if d := k.Decision(); !k.HandedBack() || d.Verdict != network.PermanentAccept {
		t.Errorf("handed back %t, %s", k.HandedBack(), d.Verdict)
	}
	l.write(datagramOf("4"))
	waitFor(t, "a stray follows", func() bool { return len(l.kernel.did()) == 4 })
	for i, want := range []string{"1", "2", "3", "4"} {
		if got := l.kernel.sent[i]; string(got[28:]) != want {
			t.Errorf("datagram %d is %q", i, got[28:])
		}
	}
	if decided, _ := l.gate.Counts(); decided != 1 {
		t.Errorf("%d decisions", decided)
	}
	l.gate.KernelEnded(KernelEnd{Flow: kernelUDP, Sent: 4, Received: 7, Cause: "closed"})
	if sent, received := k.Bytes(); sent != 4 || received != 7 || !k.Ended() || k.Report().CloseCause != "closed" {
		t.Errorf("sent %d, received %d, ended %t: %s", sent, received, k.Ended(), k.Report().CloseCause)
	}
	l.write(datagramOf("5")) // the next owner of the port
	waitFor(t, "a new decision", func() bool { d, _ := l.gate.Counts(); return d == 2 })
}

// TestHandBackUDPExpired: what the program sends after the kernel has given its flow up is a flow of its own,
// and nothing of it is lost.
func TestHandBackUDPExpired(t *testing.T) {
	l := newKernelLab(t, "")
	l.write(datagramOf("1"))
	l.eventually("it is handed back", "accept 192.0.2.1:443")
	first := l.gate.Table.Find(kernelUDP)
	l.kernel.mu.Lock()
	delete(l.kernel.accepted, kernelUDP)
	l.kernel.mu.Unlock()
	l.write(datagramOf("2"))
	l.eventually("it is handed back again", "accept 192.0.2.1:443", "forget 192.0.2.1:443", "accept 192.0.2.1:443")
	if got := l.kernel.sent[1]; string(got[28:]) != "2" {
		t.Errorf("sent %q", got[28:])
	}
	if second := l.gate.Table.Find(kernelUDP); second == first || !first.Ended() || !second.HandedBack() {
		t.Errorf("one link: %t, the first ended: %t", second == first, first.Ended())
	}
}

// TestHandBackTCP: the SYN goes on as it came, a retransmission follows it, a stray segment is no
// reason for a reset, and a SYN of the next connection is decided.
func TestHandBackTCP(t *testing.T) {
	l := newKernelLab(t, "")
	l.write(segment(flagACK, 9, "x"))
	if flags := l.answer(); flags&flagRST == 0 {
		t.Fatalf("a segment of no connection: flags %#x, want a reset", flags)
	}
	syn := segment(flagSYN, 100, "")
	l.write(syn)
	l.eventually("the SYN went on", "accept 192.0.2.1:443")
	if !slices.Equal(l.kernel.sent[0], syn) {
		t.Errorf("sent %x, want %x", l.kernel.sent[0], syn)
	}
	l.write(segment(flagACK, 101, "x")) // unanswered, or the next answer would be its reset
	l.write(syn)
	l.eventually("its retransmission follows", "accept 192.0.2.1:443", "follow 192.0.2.1:443")
	first := l.gate.Table.Find(kernelTCP)
	l.kernel.mu.Lock()
	delete(l.kernel.accepted, kernelTCP) // closed; the news of it is on its way
	l.kernel.mu.Unlock()
	go l.gate.KernelEnded(KernelEnd{Flow: kernelTCP, Cause: "closed"})
	l.write(segment(flagSYN, 5000, ""))
	waitFor(t, "a new link", func() bool { k := l.gate.Table.Find(kernelTCP); return k != nil && k != first && k.HandedBack() })
	if !first.Ended() {
		t.Error("the first connection has not ended")
	}
}

// TestHandBackLateSYN: the SYN that a program sends again just when its connect fails is no connection
// of its own, before and after the news of the failure. With another number it is one.
func TestHandBackLateSYN(t *testing.T) {
	l := newKernelLab(t, "")
	syn := segment(flagSYN, 100, "")
	l.write(syn)
	l.eventually("the SYN went on", "accept 192.0.2.1:443")
	l.kernel.mu.Lock()
	delete(l.kernel.accepted, kernelTCP) // failed; the news of it is on its way
	l.kernel.mu.Unlock()
	l.write(syn)
	l.gate.KernelEnded(KernelEnd{Flow: kernelTCP, Cause: "closed", Unanswered: true, SYN: 100})
	l.write(syn)
	l.write(segment(flagSYN, 5000, "")) // behind it, so that it was looked at
	waitFor(t, "the new connection", func() bool { k := l.gate.Table.Find(kernelTCP); return k != nil && k.HandedBack() })
	if all := l.gate.Table.All(); len(all) != 2 {
		t.Errorf("%d links, want 2", len(all))
	}
	l.gate.kernel.late.forget(nowForTests().Add(2 * lateWithin))
	if l.gate.kernel.late.any.Load() {
		t.Error("what cannot come any more is not forgotten")
	}
}

// TestHandBackEndsAtOnce: a flow may be over before the kernel's acceptance has been told.
func TestHandBackEndsAtOnce(t *testing.T) {
	for name, err := range map[string]error{"accepted": nil, "over": errors.New("its socket was closed meanwhile")} {
		t.Run(name, func(t *testing.T) {
			l := newKernelLab(t, "")
			l.kernel.err = err
			l.kernel.during = func(f packet.Flow) { l.gate.KernelEnded(KernelEnd{Flow: f, Sent: 3, Received: 5, Cause: "closed"}) }
			l.write(segment(flagSYN, 1, ""))
			waitFor(t, "it ended", func() bool { all := l.gate.Table.All(); return len(all) == 1 && all[0].Ended() })
			if sent, received := l.gate.Table.All()[0].Bytes(); sent != 3 || received != 5 || l.gate.Refused() != 0 {
				t.Errorf("sent %d, received %d, %d refused", sent, received, l.gate.Refused())
			}
		})
	}
}

// TestHandBackRefused: what the kernel does not take is relayed; so is a SYN with data, and
// everything where the setting is off.
func TestHandBackRefused(t *testing.T) {
	for name, c := range map[string]struct {
		yaml    string
		err     error
		syn     []byte
		verdict network.Verdict
	}{
		"full":      {"", errors.New("full"), segment(flagSYN, 1, ""), network.PermanentAccept},
		"with data": {"", nil, segment(flagSYN, 1, "early data"), network.PermanentAccept},
		"off":       {"core: {releaseLevel: experimental}\nfilter: {permanentVerdicts: off}\n", nil, segment(flagSYN, 1, ""), network.Accept},
	} {
		t.Run(name, func(t *testing.T) {
			l := newKernelLab(t, c.yaml)
			l.kernel.err = c.err
			l.write(c.syn)
			if flags := l.answer(); flags&flagRST == 0 { // the server refuses: dialled by the relay
				t.Errorf("flags %#x, want the reset of the server", flags)
			}
			all := l.gate.Table.All()
			if len(all) != 1 || all[0].HandedBack() || all[0].Decision().Verdict != c.verdict || len(l.kernel.did()) != 0 {
				t.Errorf("%d links, %s, handed back %t, kernel %q", len(all), all[0].Decision().Verdict, all[0].HandedBack(), l.kernel.did())
			}
			if refused := l.gate.Refused(); refused > 0 != (c.err != nil) {
				t.Errorf("%d refused", refused)
			}
			l.kernel.mu.Lock()
			defer l.kernel.mu.Unlock()
			if len(l.kernel.relayed) != 1 || l.kernel.relayed[0] != all[0].Flow {
				t.Errorf("the kernel was told that %v are relayed", l.kernel.relayed)
			}
		})
	}
}

// TestHandBackRevoked: a kill, and a policy that changed, take the flow back; one that permits it
// still does not.
func TestHandBackRevoked(t *testing.T) {
	l := newKernelLab(t, "")
	l.write(datagramOf("x"))
	l.eventually("handed back", "accept 192.0.2.1:443")
	k := l.gate.Table.Find(kernelUDP)
	if closed := l.gate.Reevaluate(); closed != 0 {
		t.Errorf("the same policy closed %d", closed)
	}
	l.gate.Firewall = master(t, "filter: {endpoints: [\"- 192.0.2.1\"]}\n")
	k.Comm().Cache(0, nil) // both policies have revision 1
	if closed := l.gate.Reevaluate(); closed != 1 {
		t.Errorf("the new policy closed %d", closed)
	}
	l.eventually("revoked", "accept 192.0.2.1:443", "revoke 192.0.2.1:443")
	waitFor(t, "ended", k.Ended)
	if cause := k.Report().CloseCause; cause != "the policy changed" {
		t.Errorf("cause %q", cause)
	}
}

// TestAdopt: what was handed back before this process is decided again.
func TestAdopt(t *testing.T) {
	l := newKernelLab(t, "filter: {endpoints: [\"- 192.0.2.9\"]}\n")
	bad := packet.Flow{Proto: packet.TCP, Local: kernelLocal, Remote: netip.MustParseAddrPort("192.0.2.9:443")}
	l.kernel.accepted[kernelTCP], l.kernel.accepted[bad] = true, true
	l.gate.Adopt(context.Background(), []packet.Flow{kernelTCP, bad})
	l.eventually("only the other one is taken back", "revoke 192.0.2.9:443")
	if k := l.gate.Table.Find(kernelTCP); k == nil || !k.HandedBack() || k.Decision().Verdict != network.PermanentAccept {
		t.Errorf("kept: %+v", k)
	}
	waitFor(t, "ended", func() bool { return l.gate.Table.Find(bad) == nil })
}
