package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"gatun/network/packet"
)

// Owners knows who sends, because programs in the kernel (cgroup hooks) note it in the system
// call itself. They only take notes: every packet and call goes on as if they were not there,
// and other programs at the same hooks keep running. They go when Owners is closed or its
// process ends, however it ends. Methods may be called from any goroutine.
type Owners struct {
	hooks  hooks
	links  []link.Link
	groups groups // of the version 2 hierarchy
	local  func(netip.Addr) bool
	own    imageRecord
	told   told

	permits   *Permits
	noPermits error
}

// hooks are the tables in the kernel that the programs share.
type hooks struct {
	claims, flows, images, blank *ebpf.Map
	ours                         *ebpf.Map // the process whose sockets are left alone, 0: none
	netns                        uint64

	// What is permitted ahead, and what begins by it; nil where mark is 0.
	permits, controls, begun *ebpf.Map
	mark, mask               uint32

	arrival uint16 // OwnersOptions.Arrival
}

// OpenOwners attaches the hooks, which needs root. The error wraps ErrNoHooks and says why
// they cannot be had.
func OpenOwners(opt OwnersOptions) (*Owners, error) {
	l, err := readLayout()
	if err != nil {
		return nil, noHooks("%w", err)
	}
	o := &Owners{local: opt.Local}
	err = o.open(l, opt)
	if err != nil && opt.Mark != 0 { // this kernel may only lack what permitting ahead needs
		_ = o.Close()
		o, opt.Mark = &Owners{local: opt.Local, noPermits: fmt.Errorf("%w: %w", ErrNoPermits, err)}, 0
		err = o.open(l, opt)
	}
	if err != nil {
		return nil, noHooks("%w", errors.Join(err, o.Close()))
	}
	return o, nil
}

// open attaches the hooks. The first is enough to check them all, and the others never see a
// socket of ours.
func (o *Owners) open(l *layout, opt OwnersOptions) (err error) {
	if opt.Root != "" {
		o.groups.root, err = os.Open(opt.Root)
	} else {
		o.groups.root, err = openHierarchy()
	}
	if err != nil {
		return err
	}
	root := descriptor(int(o.groups.root.Fd()))
	if o.hooks.netns, err = ownNetNS(); err != nil {
		return err
	}
	o.hooks.arrival = opt.Arrival
	if err := o.hooks.makeMaps(); err != nil {
		return fmt.Errorf("tables for the cgroup hooks: %w", err)
	}
	if err := o.openPermits(opt.Mark, opt.Mask); err != nil {
		return fmt.Errorf("tables for permissions: %w", err)
	}
	address := o.hooks.addressProgram(l)
	attach := func(name string, kind ebpf.ProgramType, at ebpf.AttachType, program asm.Instructions) {
		if err == nil {
			if err = o.attach(root, &ebpf.ProgramSpec{Name: "gatun_" + name, Type: kind, AttachType: at, Instructions: program}); err != nil {
				err = fmt.Errorf("hook %s: %w", name, err)
			}
		}
	}
	attach("connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, o.hooks.connectProgram(l, false))
	if err == nil {
		err = o.check()
	}
	if err == nil && opt.Ours {
		err = o.hooks.ours.Put(uint32(0), uint32(os.Getpid()))
	}
	attach("connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, o.hooks.connectProgram(l, true))
	attach("sendmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg, address)
	attach("sendmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg, address)
	attach("create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, o.hooks.createProgram(l))
	attach("egress", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, o.hooks.egressProgram(l))
	return err
}

// attach loads a program and links it beside those that others have there.
func (o *Owners) attach(root string, spec *ebpf.ProgramSpec) error {
	spec.License = "Dual MIT/GPL" // what the kernel asks of programs that read its structures
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: spec.AttachType, Program: p})
	if err != nil {
		return err
	}
	o.links = append(o.links, l)
	return nil
}

func (h *hooks) makeMaps() error {
	word := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	bytes := &btf.Int{Name: "char", Size: 1}
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&h.claims, ebpf.MapSpec{Name: "gatun_claims", Type: ebpf.SkStorage, KeySize: 4, ValueSize: claimSize, Flags: unix.BPF_F_NO_PREALLOC,
			Key: word, Value: &btf.Array{Index: word, Type: bytes, Nelems: claimSize}}},
		{&h.flows, ebpf.MapSpec{Name: "gatun_flows", Type: ebpf.LRUHash, KeySize: keySize, ValueSize: recSize, MaxEntries: maxFlows}},
		{&h.images, ebpf.MapSpec{Name: "gatun_images", Type: ebpf.LRUHash, KeySize: idSize, ValueSize: imgSize, MaxEntries: maxImages}},
		{&h.blank, ebpf.MapSpec{Name: "gatun_blank", Type: ebpf.Array, KeySize: 4, ValueSize: imgSize, MaxEntries: 1}},
		{&h.ours, ebpf.MapSpec{Name: "gatun_ours", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}},
	} {
		made, err := ebpf.NewMap(&m.spec)
		if err != nil {
			return err
		}
		*m.to = made
	}
	return nil
}

// Close detaches the hooks. Look-ups that still run, or come later, find what was noted before.
// The tables are given back with o itself.
func (o *Owners) Close() error {
	var errs []error
	if o.permits != nil {
		errs = append(errs, o.permits.Close())
	}
	for _, l := range slices.Backward(o.links) { // who judges packets must not outlive who notes whose they are
		errs = append(errs, l.Close())
	}
	if o.groups.root != nil {
		errs = append(errs, o.groups.root.Close())
	}
	return errors.Join(errs...)
}

// freshness is how old the last packet of a flow may be for its record to count. A look-up
// comes with the first packet; what is older may be another flow with the same addresses.
const freshness = 10 * time.Second

// Sender returns who sent the packets of flow f lately: from this network namespace, or from
// another one if f begins at an address that is not this machine's. found is false if nobody
// was seen, or if there was more than one.
//
// The same addresses may serve two senders one after the other. As long as the one before may
// be meant, which is until he was asked for or a look-up can no longer have waited that long,
// nobody is found.
func (o *Owners) Sender(f packet.Flow) (s Sender, found bool) {
	s, found = o.sender(f, here)
	if !found && o.local != nil && !o.local(f.Local.Addr()) {
		return o.sender(f, elsewhere)
	}
	return s, found
}

func (o *Owners) sender(f packet.Flow, from uint8) (s Sender, found bool) {
	key := keyOf(f, from)
	var r flowRecord
	if err := o.hooks.flows.Lookup(&key, &r); err != nil {
		return s, false
	}
	now := monotonic()
	if r.Last < now && now-r.Last > uint64(freshness) {
		return s, false
	}
	if r.Other != 0 && now-min(r.Other, now) < uint64(o.told.doubt(key, &r)) {
		return s, false
	}
	o.told.add(key, &r, now)
	certain := r.Sure != 0 || o.forked(r.ID, r.Claimer)
	return Sender{ImageID: r.ID, UID: r.UID, Cookie: r.Cookie, NetNS: r.NetNS, Certain: certain}, true
}

// forked reports whether the two run the same image: one that came from the other by fork
// alone. Exec gives each image a memory layout of its own.
func (o *Owners) forked(a, b ImageID) bool {
	var x, y imageRecord
	if o.hooks.images.Lookup(&a, &x) != nil || o.hooks.images.Lookup(&b, &y) != nil || x.Ready == 0 || y.Ready == 0 {
		return false
	}
	return x.Layout == y.Layout && x.Layout != [4]uint64{} && x.Inode == y.Inode && x.Device == y.Device
}

func keyOf(f packet.Flow, from uint8) flowKey {
	k := flowKey{Proto: uint8(f.Proto), Here: from, Local: f.Local.Addr().As16(), Remote: f.Remote.Addr().As16()}
	binary.BigEndian.PutUint16(k.LocalPort[:], f.Local.Port())
	binary.BigEndian.PutUint16(k.RemPort[:], f.Remote.Port())
	return k
}

// monotonic is the clock of the hooks.
func monotonic() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return uint64(t.Nano())
}

// Image returns what the kernel said about a program image while it was sending.
func (o *Owners) Image(id ImageID) (*Image, bool) {
	var r imageRecord
	if err := o.hooks.images.Lookup(&id, &r); err != nil || r.Ready == 0 {
		return nil, false
	}
	i := &Image{
		Path: r.path(), Inode: r.Inode, Device: unix.Mkdev(r.Device>>20, r.Device&(1<<20-1)),
		Elsewhere: r.MountNS != o.own.MountNS, Jailed: r.RootEntry != o.own.RootEntry,
		Comm: unix.ByteSliceToString(r.Comm[:]), Parent: int(r.Parent), Layout: r.Layout, CGroup: o.groups.path(r.CGroup),
	}
	if r.ArgsLen <= argsRoom {
		i.Args = slices.Clone(r.Args[:r.ArgsLen])
	}
	return i, true
}

// path puts the names together, "" if they do not lead to the root.
func (r *imageRecord) path() string {
	if r.PathDone == 0 || r.PathLen == 0 || r.PathLen > pathLimit {
		return ""
	}
	names := strings.Split(string(r.Path[:r.PathLen-1]), "\x00")
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// check lets this process connect a socket to itself, which sends nothing, and compares what
// the hooks say with what it knows: a kernel that keeps things elsewhere than it says, or
// numbers processes in another way than /proc, is found out here.
func (o *Owners) check() error {
	id, err := o.claimOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9))
	if err != nil {
		return err
	}
	if id.PID != uint32(os.Getpid()) {
		return errors.New("this process has another number for the kernel: it runs in a PID namespace of its own")
	}
	if err := o.hooks.images.Lookup(&id, &o.own); err != nil || o.own.Ready == 0 {
		return fmt.Errorf("the hooks did not see this process: %w", err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	args, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		return err
	}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return err
	}
	own, _ := o.Image(id)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	const start, third = 22, 3
	switch {
	case own.Path != exe && !strings.HasSuffix(exe, " (deleted)") && len(exe) < pathLimit:
		return fmt.Errorf("the hooks read the path %q of %q", own.Path, exe)
	case own.Args != nil && string(own.Args) != string(args):
		return errors.New("the hooks read other arguments than this process has")
	case own.Parent != os.Getppid():
		return fmt.Errorf("the hooks read the parent %d, which is %d", own.Parent, os.Getppid())
	case len(fields) < start || fmt.Sprint(id.Start/10_000_000) != fields[start-third]:
		return errors.New("this process started at another time for the kernel: it runs in a time namespace of its own")
	}
	return nil
}

// claimOf connects a socket and returns who did, as the hooks say.
func (o *Owners) claimOf(to netip.AddrPort) (id ImageID, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return id, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
		return id, err
	}
	var claim struct {
		ID   ImageID
		Rest [claimSize - idSize]byte
	}
	if err := o.hooks.claims.Lookup(uint32(fd), &claim); err != nil {
		return id, fmt.Errorf("the hooks did not see this process: it is outside of the control group that was found (%w)", err)
	}
	return claim.ID, nil
}
