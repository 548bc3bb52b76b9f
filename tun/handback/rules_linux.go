package handback

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Offsets in the headers (RFC 791, RFC 8200, RFC 9293) that the rules look at.
const (
	offSource4, offDestination4  = 12, 16
	offSource6, offDestination6  = 8, 24
	offSourcePort, offTargetPort = 0, 2
	offTCPFlags                  = 13
	tcpSYN                       = 0x02
)

// objects are the kernel's objects of one family's table.
type objects struct {
	table *nftables.Table
	sets  map[string]*nftables.Set
	order []string
}

func newObjects(o Options, family nftables.TableFamily, names ...string) objects {
	obj := objects{table: &nftables.Table{Family: family, Name: o.Table}, sets: map[string]*nftables.Set{}}
	for _, name := range names {
		for i, addr := range []nftables.SetDatatype{nftables.TypeIPAddr, nftables.TypeIP6Addr} {
			suffix := []string{"4", "6"}[i]
			obj.order = append(obj.order, name+suffix)
			parts := []nftables.SetDatatype{addr, addr, nftables.TypeInetProto}
			if name != setOther {
				parts = append(parts, nftables.TypeInetService, nftables.TypeInetService)
			}
			obj.sets[name+suffix] = &nftables.Set{Table: obj.table, Name: name + suffix, KeyByteOrder: binaryutil.BigEndian,
				Concatenation: true, HasTimeout: true, Size: uint32(o.Limit), Counter: counts(name), KeyType: nftables.MustConcatSetType(parts...)}
		}
	}
	return obj
}

// install puts both tables in. What the sets hold already stays: a daemon that comes back adopts
// it. A table of another shape is replaced. silences is false where the kernel cannot swallow at the device.
func install(o Options) (silences bool, err error) {
	if err := replace(o, nftables.TableFamilyINet, inetTable); err != nil {
		return false, err
	}
	if o.Device == "" {
		return false, remove(o.Table, nftables.TableFamilyNetdev)
	}
	err = replace(o, nftables.TableFamilyNetdev, netdevTable)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		o.Logger.Warn("handback: the kernel has no egress hook, or not the device: every packet of denied flows comes to userspace")
		return false, nil
	}
	return err == nil, err
}

// replace sends what fill adds in one transaction, in place of what was there.
func replace(o Options, family nftables.TableFamily, fill func(Options, *nftables.Conn) error) error {
	exists, err := tableExists(o.Table, family)
	if err != nil {
		return err
	}
	// FlushTable takes the rules and leaves sets and their elements.
	prepare := []func(*nftables.Conn, *nftables.Table){func(*nftables.Conn, *nftables.Table) {}}
	if exists {
		prepare = []func(*nftables.Conn, *nftables.Table){(*nftables.Conn).FlushTable, (*nftables.Conn).DelTable}
	}
	for _, before := range prepare {
		c := &nftables.Conn{}
		before(c, &nftables.Table{Family: family, Name: o.Table})
		if err = fill(o, c); err != nil {
			return err
		}
		if err = c.Flush(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("nftables transaction for table %s: %w", o.Table, typed(err))
}

// typed names errors that mean: this kernel, or this process, has no nftables.
func typed(err error) error {
	for _, e := range []error{unix.EPERM, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOENT, unix.EINVAL} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: nftables: %w", ErrUnsupported, err)
		}
	}
	return err
}

func inetTable(o Options, c *nftables.Conn) error {
	obj := newObjects(o, nftables.TableFamilyINet, setAccept, setLinger, setOther)
	if err := obj.add(c); err != nil {
		return err
	}
	back := c.AddChain(&nftables.Chain{Table: obj.table, Name: backName})
	if err := obj.aheadTable(o, c); err != nil {
		return err
	}
	known := c.AddChain(&nftables.Chain{Table: obj.table, Name: knownName})
	obj.rules(c, known, o, knownList(o))
	obj.rule(c, back, "handed back", marksConnection(o))
	other := c.AddChain(&nftables.Chain{Table: obj.table, Name: otherName})
	obj.rules(c, other, o, otherList(o))
	obj.rules(c, c.AddChain(&nftables.Chain{Table: obj.table, Name: markedName}), o, markedList(o))
	policy := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{Table: obj.table, Name: chainName, Type: nftables.ChainTypeRoute, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityRef(chainPriority), Policy: &policy})
	obj.rule(c, chain, "socket with the mark", marks(o, o.SocketMark), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: knownName}})
	obj.rule(c, chain, "marked", []expr.Any{meta(expr.MetaKeyMARK), bits(o.Mask, 0),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)}, &expr.Verdict{Kind: expr.VerdictJump, Chain: markedName}})
	obj.rules(c, chain, o, chainList(o))
	return nil
}

// marksConnection gives the connection SocketMark unless it has another mark of ours.
func marksConnection(o Options) []expr.Any {
	connection := &expr.Ct{Key: expr.CtKeyMARK, Register: 1}
	return []expr.Any{connection, bits(o.Mask, 0), equal(native(0)),
		connection, bits(^o.Mask, o.SocketMark), &expr.Ct{Key: expr.CtKeyMARK, SourceRegister: true, Register: 1}}
}

func accepts() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func bits(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(mask), Xor: native(xor)}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// marks ends the rule unless the packet has the mark.
func marks(o Options, mark uint32) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyMARK), bits(o.Mask, 0), equal(native(mark))}
}

// sets gives the packet the mark.
func sets(o Options, mark uint32) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyMARK), bits(^o.Mask, mark), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}
}

// rules adds the rules of a list, those that ask a set for both families.
func (obj objects) rules(c *nftables.Conn, chain *nftables.Chain, o Options, list []rule) {
	for _, r := range list {
		for _, family := range r.families() {
			var match []expr.Any
			if r.set != "" {
				match = obj.match(r.set, family)
			}
			obj.rule(c, chain, r.comment, kindOf(o, r.kind), match, effect(o, r.then))
		}
	}
}

// kindOf is a kind of packets in the kernel's terms.
func kindOf(o Options, kind string) []expr.Any {
	flag := func(op expr.CmpOp) []expr.Any {
		return append(protocolIs(unix.IPPROTO_TCP), payload(expr.PayloadBaseTransportHeader, offTCPFlags, 1, 1),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN}, Xor: []byte{0}},
			&expr.Cmp{Op: op, Register: 1, Data: []byte{tcpSYN}})
	}
	switch kind {
	case kindAny:
		return nil
	case kindSYN:
		return flag(expr.CmpOpEq)
	case kindMiddle:
		return flag(expr.CmpOpNeq)
	case kindHeld(o):
		return append(flag(expr.CmpOpEq), &expr.Socket{Key: expr.SocketKeyMark, Register: 1}, bits(o.Mask, 0), equal(native(o.Mark)))
	case kindTCP:
		return protocolIs(unix.IPPROTO_TCP)
	case kindNotUDP:
		return []expr.Any{meta(expr.MetaKeyL4PROTO), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_UDP}}}
	case kindLasting(o):
		return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, bits(o.Mask, 0), equal(native(o.LastingMark))}
	case kindOther:
		return append(protocolIsNot(unix.IPPROTO_TCP), protocolIsNot(unix.IPPROTO_UDP)...)
	case kindNoPing + marked(o, o.OwnMark):
		return append(append(protocolIsNot(unix.IPPROTO_ICMP), protocolIsNot(unix.IPPROTO_ICMPV6)...), marks(o, o.OwnMark)...)
	case marked(o, o.OwnMark):
		return marks(o, o.OwnMark)
	case marked(o, o.Mark):
		return marks(o, o.Mark)
	default:
		return protocolIs(unix.IPPROTO_UDP)
	}
}

// effect is what a rule does, in the kernel's terms.
func effect(o Options, then string) []expr.Any {
	switch then {
	case thenAccept:
		return accepts()
	case thenDrop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	case thenFew:
		return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: fewPerSecond, Over: true, Unit: expr.LimitTimeSecond, Burst: fewAtOnce},
			&expr.Verdict{Kind: expr.VerdictDrop}}
	case goAhead:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: aheadName}}
	case thenOther:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: otherName}}
	case setMark(o, o.Mark) + " accept":
		return append(sets(o, o.Mark), accepts()...)
	case setMark(o, 0) + " accept":
		return append(sets(o, 0), accepts()...)
	default:
		return append(sets(o, o.Mark), &expr.Verdict{Kind: expr.VerdictGoto, Chain: backName})
	}
}

func netdevTable(o Options, c *nftables.Conn) error {
	obj := newObjects(o, nftables.TableFamilyNetdev, setBlock, setDrop)
	if err := obj.add(c); err != nil {
		return err
	}
	policy := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{Table: obj.table, Name: egressName, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookEgress,
		Device: o.Device, Priority: nftables.ChainPriorityRef(0), Policy: &policy})
	obj.rules(c, chain, o, silenceList())
	return nil
}

func (obj objects) add(c *nftables.Conn) error {
	c.AddTable(obj.table)
	for _, name := range obj.order {
		if err := c.AddSet(obj.sets[name], nil); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

func (obj objects) rule(c *nftables.Conn, chain *nftables.Chain, comment string, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	c.AddRule(&nftables.Rule{Table: obj.table, Chain: chain, Exprs: all, UserData: userdata.AppendString(nil, userdata.TypeComment, comment)})
}

// match ends the rule unless the packet's flow is in the set. The registers are those that nft(8)
// uses, so that it lists the table as the text it is.
func (obj objects) match(set, family string) []expr.Any {
	s := obj.sets[set+family]
	out, ports := obj.familyIs(family), [2]uint32{11, 2}
	if family == "4" {
		out = append(out, payload(expr.PayloadBaseNetworkHeader, offSource4, 4, 1), payload(expr.PayloadBaseNetworkHeader, offDestination4, 4, 9),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 10})
	} else {
		ports = [2]uint32{17, 18}
		out = append(out, payload(expr.PayloadBaseNetworkHeader, offSource6, 16, 1), payload(expr.PayloadBaseNetworkHeader, offDestination6, 16, 2),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 3})
	}
	if set != setOther {
		out = append(out, payload(expr.PayloadBaseTransportHeader, offSourcePort, 2, ports[0]), payload(expr.PayloadBaseTransportHeader, offTargetPort, 2, ports[1]))
	}
	return append(out, &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID})
}

func (obj objects) familyIs(family string) []expr.Any {
	if obj.table.Family == nftables.TableFamilyNetdev {
		ether := []byte{0x08, 0x00}
		if family == "6" {
			ether = []byte{0x86, 0xdd}
		}
		return []expr.Any{meta(expr.MetaKeyPROTOCOL), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ether}}
	}
	proto := byte(unix.NFPROTO_IPV4)
	if family == "6" {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{meta(expr.MetaKeyNFPROTO), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

func meta(k expr.MetaKey) expr.Any { return &expr.Meta{Key: k, Register: 1} }

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func payload(base expr.PayloadBase, offset, size, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: size}
}

func protocolIsNot(proto byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{proto}}}
}

func protocolIs(proto byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

// tableExists reports whether there is such a table, whoever made it.
func tableExists(name string, family nftables.TableFamily) (bool, error) {
	tables, err := (&nftables.Conn{}).ListTablesOfFamily(family)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", typed(err))
	}
	for _, t := range tables {
		if t.Name == name {
			return true, nil
		}
	}
	return false, nil
}

// remove deletes a table. It is no error if there is none.
func remove(name string, family nftables.TableFamily) error {
	exists, err := tableExists(name, family)
	if err != nil || !exists {
		return err
	}
	c := &nftables.Conn{}
	c.DelTable(&nftables.Table{Family: family, Name: name})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete nftables table %s: %w", name, err)
	}
	return nil
}

// Recover takes away both tables with all that they hold, whoever made them and whatever is left
// of them. Handed-back flows that are open go into the TUN device from then on, or where the routes
// lead. It may be called at any time, and again.
func Recover(o Options) error {
	if o.Table == "" {
		o.Table = DefaultTable
	}
	err := errors.Join(remove(o.Table, nftables.TableFamilyINet), remove(o.Table, nftables.TableFamilyNetdev))
	if errors.Is(err, ErrUnsupported) {
		return nil // no nftables, no tables
	}
	return err
}
