package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gatun/e2e/lab"
)

// Where the hostile nameserver is, and what it answers: the true address and the one that nobody
// may see.
const (
	hostileAddr, hostileAddr6, muteAddr = "198.51.100.68", "2001:db8:2::68", "198.51.100.70"
	honestData, poisonData              = " c633640a", " cb007142"
)

// hostileWorld is a lab with the hostile nameserver in it, and gatun with nobody else to ask.
type hostileWorld struct {
	*dnsWorld
	g   *lab.Gatun
	log string
}

func (b *bench) hostileWorld(mode, url string) (*hostileWorld, error) {
	w, err := b.dnsWorld()
	if err != nil {
		return nil, err
	}
	h := &hostileWorld{dnsWorld: w, log: filepath.Join(w.dir, "hostile.ndjson")}
	p, err := w.Start(w.Server, lab.Spec{Pipe: true}, w.Bins.Peer, "hostile", "-log", h.log, "-mute", muteAddr, hostileAddr+","+hostileAddr6)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if _, err := p.Stdout.Read(make([]byte, 64)); err != nil {
		text, _ := os.ReadFile(p.Log)
		return nil, errors.Join(fmt.Errorf("the hostile nameserver: %w: %s", err, text), w.Close())
	}
	if h.g, err = started(w.Lab, mode, upstreams(url)); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return h, nil
}

// proveDNSHygiene looks at gatun's own queries from the side of a nameserver that means harm.
func proveDNSHygiene(b *bench) error {
	for _, mode := range []string{"up", "run"}[:b.size(2, 1)] {
		b.note("mode", mode)
		if err := b.hygiene(mode); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) hygiene(mode string) (err error) {
	w, err := b.hostileWorld(mode, "dns://"+hostileAddr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	for _, step := range []func(*hostileWorld) error{b.randomness, b.forgeries, b.coalescing, b.outOfOrder, b.bailiwick, b.deadFirst} {
		if err := step(w); err != nil {
			return err
		}
	}
	return nil
}

// asked is one query that reached the hostile nameserver.
type asked struct {
	Name string
	Port uint16
	ID   uint16
}

// asked reads which queries for names with that prefix arrived.
func (w *hostileWorld) asked(prefix string) (list []asked, err error) {
	text, err := os.ReadFile(w.log)
	if err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var a asked
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			return nil, err
		}
		if strings.HasPrefix(a.Name, prefix) {
			list = append(list, a)
		}
	}
	return list, nil
}

// queries are n rows for names made from a pattern with %d in it, or all for the same name.
func queries(n int, pattern string) []dnsCase {
	t := &table{}
	for i := range n {
		t.add(fmt.Sprint(i), "udp", t.ask(strings.Replace(pattern, "%d", fmt.Sprint(i), 1), typeA))
	}
	return t.rows
}

// randomness counts source ports and tests the distribution of the IDs: their bytes, and the
// differences of neighbours, so that a counter is seen too. A careless client must fail.
func (b *bench) randomness(w *hostileWorld) error {
	n := b.size(2000, 300)
	if _, err := w.exchange(w.g.Program, queries(n, "count-%d.hostile.example."), hostileAddr+":53", "-at", "32"); err != nil {
		return err
	}
	list, err := w.asked("count-")
	if err != nil {
		return err
	}
	b.atLeast("queries upstream", float64(len(list)), float64(n), fmt.Sprintf("of %d", n))
	ports, ids := spread(list)
	b.atLeast("source ports used", float64(ports), float64(n)*0.95, fmt.Sprintf("of %d queries", n))
	for what, p := range ids {
		b.atLeast("IDs, "+what+": chi-square p", p, 1e-6, "")
	}
	if _, err := w.exchange(w.direct, queries(min(n, 100), "naive-%d.hostile.example."), hostileAddr+":53", "-naive"); err != nil {
		return err
	}
	naive, err := w.asked("naive-")
	if err != nil {
		return err
	}
	ports, _ = spread(naive)
	b.exactly("control: source ports of a careless client", float64(ports), 1)
	for i := range list {
		list[i].ID = uint16(7 * i)
	}
	_, ids = spread(list)
	b.atMost("control: IDs that count upwards, smallest p", slices.Min([]float64{ids["high byte"], ids["low byte"], ids["difference"]}), 1e-6, "")
	return nil
}

// spread returns how many source ports there are, and how probable the IDs are if they are
// random.
func spread(list []asked) (ports int, p map[string]float64) {
	seen := map[uint16]bool{}
	var high, low, step [64]int
	for i, a := range list {
		seen[a.Port] = true
		high[a.ID>>10]++
		low[a.ID&63]++
		step[(a.ID-list[max(i-1, 0)].ID)>>10]++
	}
	return len(seen), map[string]float64{"high byte": chiSquare(high[:]), "low byte": chiSquare(low[:]), "difference": chiSquare(step[:])}
}

// chiSquare is the probability of counts at least so uneven if all are equally likely, by Wilson
// and Hilferty's approximation.
func chiSquare(counts []int) float64 {
	sum, x := 0, 0.0
	for _, n := range counts {
		sum += n
	}
	want := float64(sum) / float64(len(counts))
	for _, n := range counts {
		x += (float64(n) - want) * (float64(n) - want) / want
	}
	k := float64(len(counts) - 1)
	z := (math.Cbrt(x/k) - (1 - 2/(9*k))) / math.Sqrt(2/(9*k))
	return math.Erfc(z/math.Sqrt2) / 2
}

// forgeries lets a forged reply of each kind arrive before the true one.
func (b *bench) forgeries(w *hostileWorld) error {
	n := b.size(50, 4)
	for _, server := range []struct{ family, addr, url string }{{"IPv4", hostileAddr + ":53", "dns://" + hostileAddr}, {"IPv6", "[" + hostileAddr6 + "]:53", "dns://[" + hostileAddr6 + "]"}} {
		if b.small && server.family == "IPv6" {
			continue
		}
		if err := reconfigure(w.Lab, w.g, upstreams(server.url)); err != nil {
			return err
		}
		for _, kind := range []string{"id", "port", "address", "name", "type", "class", "qr", "none", "two", "opcode", "cut", "foreign"} {
			pattern := fmt.Sprintf("bogus-%s-%s-%%d.hostile.example.", kind, strings.ToLower(server.family))
			got, err := w.exchange(w.g.Program, queries(n, pattern), server.addr)
			if err != nil {
				return err
			}
			control := queries(min(n, b.size(10, 1)), pattern)
			for i := range control {
				control[i].replies = 2 // the forged one and the true one
			}
			fooled, err := w.exchange(w.direct, control, server.addr, "-naive")
			if err != nil {
				return err
			}
			b.exactly(fmt.Sprintf("%s, forged reply with another %s: true answers", server.family, kind), float64(trueAnswers(got)), float64(n))
			b.exactly("  control: a careless client that was sent it", float64(len(fooled)-clean(fooled)), float64(len(fooled)))
		}
	}
	return b.foreignVictim(w)
}

// trueAnswers counts the rows whose only reply holds the true address and nothing else.
func trueAnswers(got map[string]dnsReply) (n int) {
	for _, r := range got {
		list, err := sortedMessages(r)
		if err == nil && len(list) == 1 && len(list[0].answer) == 1 && list[0].answer[0].data == honestData && len(list[0].extra) == 0 {
			n++
		}
	}
	return n
}

// clean counts the rows whose first datagram was the true reply.
func clean(got map[string]dnsReply) (n int) {
	for _, r := range got {
		r.Replies = r.Replies[:min(1, len(r.Replies))]
		n += trueAnswers(map[string]dnsReply{"": r})
	}
	return n
}

// foreignVictim asks for the name whose address came along with true answers.
func (b *bench) foreignVictim(w *hostileWorld) error {
	got, err := w.exchange(w.g.Program, queries(1, "victim-foreign.bank.example."), hostileAddr+":53")
	if err != nil {
		return err
	}
	b.exactly("a foreign record that came along was kept", float64(1-trueAnswers(got)), 0)
	return nil
}

// coalescing asks the same at once, and as many different names.
func (b *bench) coalescing(w *hostileWorld) error {
	same := queries(100, "slow-same.hostile.example.")
	for what, rows := range map[string][]dnsCase{"slow-same": same, "slow-other": queries(100, "slow-other-%d.hostile.example.")} {
		got, err := w.exchange(w.g.Program, rows, hostileAddr+":53", "-at", "100")
		if err != nil {
			return err
		}
		list, err := w.asked(what)
		if err != nil {
			return err
		}
		b.exactly("100 at once, "+what+": answered", float64(trueAnswers(got)), 100)
		if what == "slow-same" {
			b.exactly("100 identical at once: queries upstream", float64(len(list)), 1)
		} else {
			b.atLeast("control: 100 different at once: queries upstream", float64(len(list)), 100, "")
		}
	}
	return nil
}

// outOfOrder asks for a slow name and then a quick one on one TCP connection: the quick one must not
// wait (RFC 7766, 7).
func (b *bench) outOfOrder(w *hostileWorld) error {
	rows := []dnsCase{{id: "0", net: "tcp", replies: 2, messages: [][]byte{
		question(1, bitRD, "slow-first.hostile.example.", typeA, 1), question(2, bitRD, "quick.hostile.example.", typeA, 1),
	}}}
	got, err := w.exchange(w.g.Program, rows, hostileAddr+":53")
	if err != nil {
		return err
	}
	order := ""
	for _, text := range got["0"].Replies {
		order += text[:4] + " "
	}
	b.figure("TCP: IDs of the replies to a slow and a quick query", order, order == "0002 0001 ")
	return nil
}

// bailiwick asks for names whose answers bring records of a victim along in 20 ways, then for the
// victim.
func (b *bench) bailiwick(w *hostileWorld) error {
	const cases = 20
	bait := queries(cases+1, "poison-%d-x.hostile.example.")[1:]
	victims := queries(cases+1, "victim-%d.bank.example.")[1:]
	offered, err := w.exchange(w.direct, bait, hostileAddr+":53")
	if err != nil {
		return err
	}
	took := 0
	for _, r := range offered {
		if strings.Contains(strings.Join(r.Replies, ""), strings.TrimSpace(poisonData)) {
			took++
		}
	}
	b.exactly("control: poisonous replies that were sent", float64(took), cases)
	answered, err := w.exchange(w.g.Program, bait, hostileAddr+":53")
	if err != nil {
		return err
	}
	foreign, failed := 0, 0
	for i, row := range bait {
		list, err := sortedMessages(answered[row.id])
		if err != nil || len(list) != 1 {
			failed++
			continue
		}
		// 6, 7 and 20 make the asked name itself an alias, which its owner may do.
		text := records(list[0].answer) + records(list[0].ns) + records(list[0].extra)
		if n := i + 1; n != 6 && n != 7 && n != 20 && strings.Contains(text, strings.TrimSpace(poisonData)) {
			foreign++
		}
	}
	b.exactly("poisonous replies: not answered", float64(failed), 0)
	b.exactly("poisonous replies: passed on with the foreign record", float64(foreign), 0)
	got, err := w.exchange(w.g.Program, victims, hostileAddr+":53")
	if err != nil {
		return err
	}
	b.exactly("bailiwick: victims poisoned", float64(cases-trueAnswers(got)), 0)
	return nil
}
