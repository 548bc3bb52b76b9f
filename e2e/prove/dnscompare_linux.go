package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"gatun/e2e/lab"
)

// asker runs the helper somewhere: in front of gatun, or where there is none.
type asker func(ctx context.Context, args ...string) (lab.Result, error)

// direct asks from the twin, which has no gatun.
func (w *dnsWorld) direct(ctx context.Context, args ...string) (lab.Result, error) {
	return w.Peer(ctx, w.Twin, args...)
}

// dnsReply is what came back for one row.
type dnsReply struct {
	ID      string
	Replies []string
	Error   string
	MS      float64
}

// exchange sends rows to a server and returns what came back, by row.
func (w *dnsWorld) exchange(ask asker, rows []dnsCase, server string, flags ...string) (map[string]dnsReply, error) {
	var orders []any
	for _, c := range rows {
		orders = append(orders, c.order())
	}
	b, err := json.Marshal(orders)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(w.Dir, "orders-*.json")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		return nil, err
	}
	r, err := ask(context.Background(), slices.Concat([]string{"exchange"}, flags, []string{f.Name(), server})...)
	if err != nil {
		return nil, err
	}
	var list []dnsReply
	if err := json.Unmarshal([]byte(r.Data), &list); err != nil {
		return nil, fmt.Errorf("exchange: %w: %+v", err, r)
	}
	replies := map[string]dnsReply{}
	for _, reply := range list {
		replies[reply.ID] = reply
	}
	return replies, nil
}

// difference is one thing in which two answers to a row differ.
type difference struct {
	row, what, direct, through string
}

func (d difference) String() string {
	return fmt.Sprintf("%s: %s: directly %s, through gatun %s", d.row, d.what, d.direct, d.through)
}

// compareReplies compares two answers to one row. Replies on one socket may come in any order,
// so they are sorted by their ID and question.
func compareReplies(row dnsCase, direct, through dnsReply) (hard, soft []difference) {
	differ := func(list *[]difference, what string, a, b any) {
		if fmt.Sprint(a) != fmt.Sprint(b) {
			*list = append(*list, difference{row.id, what, oneLine(a), oneLine(b)})
		}
	}
	a, errA := sortedMessages(direct)
	b, errB := sortedMessages(through)
	differ(&hard, "well-formed", errA, errB)
	differ(&hard, "replies", fmt.Sprint(len(a), " ", direct.Error), fmt.Sprint(len(b), " ", through.Error))
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		differ(&hard, "id and question", x.key(), y.key())
		differ(&hard, "rcode", rcodeName(x.rcode()), rcodeName(y.rcode()))
		differ(&hard, "TC", x.flags&bitTC != 0, y.flags&bitTC != 0)
		differ(&hard, "OPT", x.opt != nil, y.opt != nil)
		if x.opt != nil && y.opt != nil {
			differ(&hard, "EDNS version and DO", fmt.Sprint(x.opt.version, x.opt.do), fmt.Sprint(y.opt.version, y.opt.do))
			differ(&soft, "EDNS size", x.opt.size, y.opt.size)
			differ(&soft, "EDNS options", x.opt.codes, y.opt.codes)
		}
		if x.flags&bitTC == 0 || y.flags&bitTC == 0 { // the records of a cut answer are not to be used (RFC 2181, 9)
			differ(&hard, "answer", records(x.answer), records(y.answer))
			differ(&soft, "authority", records(x.ns), records(y.ns))
			differ(&soft, "additional", records(x.extra), records(y.extra))
		}
		for name, bit := range headerBits() {
			differ(&soft, name, x.flags&bit != 0, y.flags&bit != 0)
		}
	}
	return hard, soft
}

// headerBits are the bits of the header that are compared beside TC.
func headerBits() map[string]uint16 {
	return map[string]uint16{"QR": bitQR, "AA": bitAA, "RD": bitRD, "RA": bitRA, "Z": bitZ, "AD": bitAD, "CD": bitCD, "opcode": 0x7800}
}

func (m message) key() string { return fmt.Sprintf("%05d %s", m.id, strings.Join(m.questions, " ")) }

func sortedMessages(r dnsReply) (list []message, err error) {
	for _, text := range r.Replies {
		b, err := hex.DecodeString(text)
		if err != nil {
			return nil, err
		}
		m, err := parseMessage(b)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	slices.SortStableFunc(list, func(a, b message) int { return cmp.Compare(a.key(), b.key()) })
	return list, nil
}

func oneLine(v any) string {
	s := strings.ReplaceAll(fmt.Sprint(v), "\n", " | ")
	if len(s) > 160 {
		s = s[:160] + "…"
	}
	return "`" + s + "`"
}

func rcodeName(n int) string {
	names := map[int]string{0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 16: "BADVERS", 23: "BADCOOKIE"}
	if s := names[n]; s != "" {
		return s
	}
	return fmt.Sprint(n)
}

// compareTable compares a whole table and reports: the rows that differ and are no decision are
// missed, the others are listed with what decided them. A server that answers from its cache
// otherwise than it did the first time has given two answers, and each of them will do.
func (b *bench) compareTable(what string, rows []dnsCase, through map[string]dnsReply, direct ...map[string]dnsReply) {
	equal, byDecision := 0, map[string][]string{}
	softly := map[string][]string{}
	var bugs []difference
	for _, row := range rows {
		hard, soft := compareReplies(row, direct[0][row.id], through[row.id])
		for _, other := range direct[1:] {
			if h, s := compareReplies(row, other[row.id], through[row.id]); len(h) < len(hard) {
				hard, soft = h, s
			}
		}
		for _, d := range soft {
			softly[d.what] = append(softly[d.what], d.row)
		}
		if len(hard) == 0 {
			equal++
		}
		for _, d := range hard {
			if reason := decidedDifference(what, d); reason == "" {
				bugs = append(bugs, d)
			} else if !slices.Contains(byDecision[reason], row.id) {
				byDecision[reason] = append(byDecision[reason], row.id)
			}
		}
	}
	b.note(what+": rows", fmt.Sprintf("%d, equal %d", len(rows), equal))
	for _, reason := range slices.Sorted(maps.Keys(byDecision)) {
		b.note(what+": differ by decision", fmt.Sprintf("%d (%s): %s", len(byDecision[reason]), reason, strings.Join(byDecision[reason], " ")))
	}
	for _, name := range slices.Sorted(maps.Keys(softly)) {
		rows := slices.Compact(softly[name])
		b.note(what+": also differs, "+name, fmt.Sprintf("%d: %s", len(rows), shorten(rows)))
	}
	for _, d := range bugs[:min(len(bugs), 12)] {
		b.note("difference", what+": "+d.String())
	}
	b.exactly(what+": differences that nothing decided", float64(len(bugs)), 0)
}

func shorten(list []string) string {
	if len(list) > 60 {
		return strings.Join(list[:60], " ") + " …"
	}
	return strings.Join(list, " ")
}
