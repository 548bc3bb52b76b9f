package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"gatun/network/packet"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// elementsPerMessage keeps a message below the 64 KiB that a netlink attribute can hold.
const elementsPerMessage = 256

// nftBuffer holds a whole transaction: the kernel takes it in one message or not at all.
const nftBuffer = 8 << 20

// openNft returns a connection with buffers for big transactions. The buffers only matter for
// large snapshots, so a process without the right to force them still works.
func openNft() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		_ = c.SetWriteBuffer(nftBuffer)
		_ = c.SetReadBuffer(nftBuffer)
		return nil
	}))
}

// guardTable builds the kernel objects of one transaction.
type guardTable struct {
	table *nftables.Table
	sets  [2]*nftables.Set // est4, est6
	asked [2]*nftables.Set // asked4, asked6
}

func newGuardTable(name string) guardTable {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	set := func(name string, addr nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyByteOrder: binaryutil.BigEndian, Concatenation: true, KeyType: nftables.MustConcatSetType(
			addr, addr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeInetService)}
	}
	asked := func(name string, addr nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyByteOrder: binaryutil.BigEndian, Concatenation: true, Dynamic: true,
			HasTimeout: true, Timeout: askedFor, Size: askedLimit, KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetService)}
	}
	return guardTable{table: t, asked: [2]*nftables.Set{asked(askedSet4, nftables.TypeIPAddr), asked(askedSet6, nftables.TypeIP6Addr)}, sets: [2]*nftables.Set{set(set4, nftables.TypeIPAddr), set(set6, nftables.TypeIP6Addr)}}
}

// installGuard puts the guard in, with flows in its sets, in one transaction. An existing
// table is adopted: its rules are replaced at the same instant, so there is no moment without
// a guard. If the table has another shape, it is deleted and added in the same transaction.
func installGuard(g Guard, flows []packet.Flow) error {
	if exists, err := tableExists(g.Table); err != nil {
		return err
	} else if exists {
		if foreignChains(g) == nil {
			if err := sendGuard(g, flows, (*nftables.Conn).FlushTable); err == nil {
				return nil
			}
		}
		return sendGuard(g, flows, (*nftables.Conn).DelTable)
	}
	return sendGuard(g, flows, func(*nftables.Conn, *nftables.Table) {})
}

// sendGuard sends prepare and the whole guard as one transaction.
func sendGuard(g Guard, flows []packet.Flow, prepare func(*nftables.Conn, *nftables.Table)) error {
	c, err := openNft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	gt := newGuardTable(g.Table)
	prepare(c, gt.table)
	c.AddTable(gt.table)
	for _, s := range gt.sets {
		if g.Bare {
			break
		}
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	if g.Asked {
		for _, s := range gt.asked {
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
	}
	if err := gt.addFlows(c, flows); err != nil {
		return err
	}
	for _, chain := range g.Chains {
		nc := kernelChain(gt.table, chain)
		c.AddChain(nc)
		for _, r := range chain.Rules {
			c.AddRule(&nftables.Rule{Table: gt.table, Chain: nc, Exprs: gt.exprs(r),
				UserData: userdata.AppendString(nil, userdata.TypeComment, r.Comment)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables transaction for table inet %s: %w", g.Table, err)
	}
	return nil
}

func kernelChain(t *nftables.Table, c Chain) *nftables.Chain {
	hooks := map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting,
		"input": nftables.ChainHookInput, "output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting}
	policy := nftables.ChainPolicyAccept
	if c.Drop {
		policy = nftables.ChainPolicyDrop
	}
	return &nftables.Chain{Table: t, Name: c.Name, Type: nftables.ChainType(c.Type), Hooknum: hooks[c.Hook],
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.Priority)), Policy: &policy}
}

// tableExists reports whether the guard's table is there, whoever made it.
func tableExists(name string) (bool, error) {
	c, err := openNft()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == name {
			return true, nil
		}
	}
	return false, nil
}

// removeGuard deletes the table. It is no error if there is none.
func removeGuard(name string) error {
	exists, err := tableExists(name)
	if err != nil || !exists {
		return err
	}
	c, err := openNft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete table inet %s: %w", name, err)
	}
	return nil
}

// ourChains lists the chains of the guard's table.
func ourChains(c *nftables.Conn, table string) (map[string]*nftables.Chain, error) {
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	chains := map[string]*nftables.Chain{}
	for _, ch := range all {
		if ch.Table.Name == table {
			chains[ch.Name] = ch
		}
	}
	return chains, nil
}

// foreignChains returns an error if the table has chains that the guard has not.
func foreignChains(g Guard) error {
	c, err := openNft()
	if err != nil {
		return err
	}
	chains, err := ourChains(c, g.Table)
	if err != nil {
		return err
	}
	for _, want := range g.Chains {
		delete(chains, want.Name)
	}
	for name := range chains {
		return fmt.Errorf("table inet %s has a foreign chain %s", g.Table, name)
	}
	return nil
}

// verifyGuard returns nil if the guard in the kernel is ours, rule by rule. A rule cannot be
// changed in place without losing its comment or its position, so comments in order suffice.
func verifyGuard(g Guard) error {
	if err := foreignChains(g); err != nil {
		return err
	}
	c, err := openNft()
	if err != nil {
		return err
	}
	chains, err := ourChains(c, g.Table)
	if err != nil {
		return err
	}
	for _, want := range g.Chains {
		have, ok := chains[want.Name]
		if !ok {
			return fmt.Errorf("chain %s is missing", want.Name)
		}
		k := kernelChain(have.Table, want)
		if have.Policy == nil || *have.Policy != *k.Policy || have.Hooknum == nil || *have.Hooknum != *k.Hooknum ||
			have.Priority == nil || *have.Priority != *k.Priority {
			return fmt.Errorf("chain %s has another hook or policy", want.Name)
		}
		if err := verifyRules(c, have, want); err != nil {
			return err
		}
	}
	return nil
}

func verifyRules(c *nftables.Conn, have *nftables.Chain, want Chain) error {
	rules, err := c.GetRules(have.Table, have)
	if err != nil {
		return fmt.Errorf("list chain %s: %w", want.Name, err)
	}
	if len(rules) != len(want.Rules) {
		return fmt.Errorf("chain %s has %d rules instead of %d", want.Name, len(rules), len(want.Rules))
	}
	for i, r := range rules {
		if comment, _ := userdata.GetString(r.UserData, userdata.TypeComment); comment != want.Rules[i].Comment {
			return fmt.Errorf("chain %s: rule %d is %q instead of %q", want.Name, i+1, comment, want.Rules[i].Comment)
		}
	}
	return nil
}

// addFlows adds flows to the snapshot sets.
func (gt guardTable) addFlows(c *nftables.Conn, flows []packet.Flow) error {
	return gt.eachChunk(flows, c.SetAddElements)
}

func (gt guardTable) eachChunk(flows []packet.Flow, do func(*nftables.Set, []nftables.SetElement) error) error {
	var elements [2][]nftables.SetElement
	for _, f := range flows {
		i := 0
		if f.Is6() {
			i = 1
		}
		elements[i] = append(elements[i], nftables.SetElement{Key: flowKey(f)})
	}
	for i, list := range elements {
		for len(list) > 0 {
			n := min(len(list), elementsPerMessage)
			if err := do(gt.sets[i], list[:n]); err != nil {
				return fmt.Errorf("set %s: %w", gt.sets[i].Name, err)
			}
			list = list[n:]
		}
	}
	return nil
}

// changeFlows adds and deletes elements of the snapshot sets in one transaction.
func changeFlows(table string, add, del []packet.Flow) error {
	if len(add)+len(del) == 0 {
		return nil
	}
	c, err := openNft()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	gt := newGuardTable(table)
	if err := gt.addFlows(c, add); err != nil {
		return err
	}
	if err := gt.eachChunk(del, c.SetDeleteElements); err != nil {
		return err
	}
	return c.Flush()
}

// readFlows returns what the snapshot sets in the kernel hold.
func readFlows(table string) ([]packet.Flow, error) {
	c, err := openNft()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	var flows []packet.Flow
	for _, s := range newGuardTable(table).sets {
		elements, err := c.GetSetElements(s)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read set %s: %w", s.Name, err)
		}
		for _, e := range elements {
			if f, ok := keyFlow(e.Key); ok {
				flows = append(flows, f)
			}
		}
	}
	return flows, nil
}

// flowKey is the set key: addresses, protocol and ports, each padded to four bytes.
func flowKey(f packet.Flow) []byte {
	key := append(f.Local.Addr().AsSlice(), f.Remote.Addr().AsSlice()...)
	key = append(key, byte(f.Proto), 0, 0, 0)
	for _, port := range []uint16{f.Local.Port(), f.Remote.Port()} {
		key = append(binary.BigEndian.AppendUint16(key, port), 0, 0)
	}
	return key
}

// keyFlow is the inverse of flowKey.
func keyFlow(key []byte) (packet.Flow, bool) {
	size := (len(key) - 12) / 2
	if size != 4 && size != 16 || len(key) != 2*size+12 {
		return packet.Flow{}, false
	}
	local, _ := netip.AddrFromSlice(key[:size])
	remote, _ := netip.AddrFromSlice(key[size : 2*size])
	rest := key[2*size:]
	return packet.Flow{Proto: packet.Proto(rest[0]),
		Local:  netip.AddrPortFrom(local, binary.BigEndian.Uint16(rest[4:])),
		Remote: netip.AddrPortFrom(remote, binary.BigEndian.Uint16(rest[8:]))}, true
}

// exprs translates a rule. The registers are those that nft(8) uses, so that it lists the
// table as the text it is.
func (gt guardTable) exprs(r GuardRule) []expr.Any {
	var out []expr.Any
	for _, c := range r.Clauses {
		out = append(out, gt.clause(c)...)
	}
	switch r.Verdict {
	case "accept":
		out = append(out, &expr.Verdict{Kind: expr.VerdictAccept})
	case "drop":
		out = append(out, &expr.Verdict{Kind: expr.VerdictDrop})
	case "notrack":
		out = append(out, &expr.Notrack{})
	}
	return out
}
