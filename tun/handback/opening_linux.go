package handback

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"gatun/network/packet"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// opening is the table that gives connections to permitted destinations their mark before their SYN passes
// the guard. The kernel takes it away when this process has ended, however that was, and lets nobody else
// change it (NFT_TABLE_F_OWNER, Linux 5.12).
//
// Its rules do not know whose a SYN is: whoever may set marks reaches such a destination by them. Who gives
// the mark to sockets (network/state.Permits) has to see to it, behind these rules, that no other SYN with
// the mark leaves, and is gone with this process as well. The source has to be an address of this machine,
// as in the device.
type opening struct {
	obj objects

	mu   sync.Mutex // the table in the kernel is what it guards
	c    *nftables.Conn
	have map[netip.AddrPort]struct{}
}

// ownedTable is NFT_TABLE_F_OWNER.
const ownedTable = 2

func openOpening(o Options) (*opening, error) {
	name := o.Table + firstSuffix
	g := &opening{obj: objects{table: &nftables.Table{Family: nftables.TableFamilyINet, Name: name}, sets: map[string]*nftables.Set{}}, have: map[netip.AddrPort]struct{}{}}
	var err error
	if g.c, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error { return own(c, name) })); err != nil {
		return nil, fmt.Errorf("table %s: %w", name, typed(err))
	}
	if err = g.fill(o); err == nil {
		err = g.c.Flush()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("table %s: %w", name, typed(err)), g.c.CloseLasting())
	}
	return g, nil
}

// own makes the table, which belongs to the socket from then on.
func own(c *netlink.Conn, table string) error {
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(table), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: []byte{0, 0, 0, ownedTable}},
	})
	if err != nil {
		return err
	}
	message := func(typ netlink.HeaderType, flags netlink.HeaderFlags, data ...byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: data}
	}
	batch := []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	_, err = c.SendMessages([]netlink.Message{
		message(batchBegin, 0, batch...),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl|netlink.Acknowledge, append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attributes...)...),
		message(batchEnd, 0, batch...),
	})
	if err == nil {
		_, err = c.Receive()
	}
	return err
}

// fill adds what is in the table.
func (g *opening) fill(o Options) error {
	if err := g.obj.destinations(g.c, false); err != nil {
		return err
	}
	policy := nftables.ChainPolicyAccept
	first := g.c.AddChain(&nftables.Chain{Table: g.obj.table, Name: firstName, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityRef(firstPriority), Policy: &policy})
	g.obj.rule(g.c, first, "others decide", []expr.Any{meta(expr.MetaKeyMARK), bits(o.Mask, 0),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(o.SocketMark)}}, accepts())
	// All packets with the mark come by here: they are asked once whether they are a SYN.
	begins := g.c.AddChain(&nftables.Chain{Table: g.obj.table, Name: beginsName})
	g.obj.rule(g.c, first, "begins", opens(), []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: beginsName}})
	for _, family := range []string{"4", "6"} {
		g.obj.rule(g.c, begins, "permitted ahead", unconfirmed(), g.obj.destination(family), fromHere(), marksConnection(o))
	}
	return nil
}

// opens ends the rule unless the packet is a SYN and nothing else.
func opens() []expr.Any {
	const finSynRstAck = 0x17
	return append(protocolIs(unix.IPPROTO_TCP), payload(expr.PayloadBaseTransportHeader, offTCPFlags, 1, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{finSynRstAck}, Xor: []byte{0}}, equal([]byte{tcpSYN}))
}

// unconfirmed ends the rule unless the packet is the first of its connection that is tracked: a socket that
// gets the mark later is too late, and so is what was stopped behind the rules while its owner lived.
func unconfirmed() []expr.Any {
	const confirmed = 1 << 3 // IPS_CONFIRMED
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, bits(confirmed, 0), equal(native(0))}
}

// fromHere ends the rule unless the source is an address of this machine.
func fromHere() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagSADDR: true}, equal(native(unix.RTN_LOCAL))}
}

// admit lets connections to the destinations begin. Nothing needs to take them away again: the table is gone
// with us, and what may not pass is stopped by who gives the mark.
func (g *opening) admit(proto packet.Proto, to []netip.AddrPort) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.have)+len(to) > aheadLimit {
		for _, s := range g.obj.sets {
			g.c.FlushSet(s)
		}
		clear(g.have)
	}
	added := 0
	for _, d := range to {
		if _, ok := g.have[d]; ok {
			continue
		}
		k := destinationKey(proto, d)
		if err := g.c.SetAddElements(g.obj.sets[setAhead+suffixOf(d)], []nftables.SetElement{{Key: k.b[:k.len]}}); err != nil {
			return fmt.Errorf("permit %s ahead: %w", d, err)
		}
		g.have[d] = struct{}{}
		added++
	}
	if added == 0 {
		return nil
	}
	if err := g.c.Flush(); err != nil {
		clear(g.have)
		return fmt.Errorf("permit destinations ahead: %w", typed(err))
	}
	return nil
}

// close takes the table away.
func (g *opening) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.c.CloseLasting()
}
