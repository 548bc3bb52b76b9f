// Package inbound holds what comes in to this machine until it has a verdict, and gives it back.
//
// The guard (tun/route, Policy.Inbound) sends the first packet of every new inbound TCP and UDP
// flow into a queue of the kernel (nfnetlink_queue). Queue reads it, and each packet gets exactly
// one verdict: accepted, it runs through the guard's chain once more with a mark, by which the chain
// enters the flow into connection tracking, and from then on no packet of it comes to userspace;
// dropped, nobody hears of it; rejected, its sender hears a reset or an ICMP error. Flows ends what
// was let in, and tells whether it still lives.
//
// Only the Gate (firewall/interception) uses it, through cmd; it imports package packet, decides
// nothing and knows no programs. It sets no rules: a queue without a reader is closed, because the
// guard's rule has no bypass.
package inbound

import (
	"errors"
	"fmt"

	"gatun/network/packet"

	"go.uber.org/zap"
)

// ErrUnsupported says that this system, or this user, cannot hold inbound packets.
var ErrUnsupported = errors.New("inbound packets cannot be held here")

// DefaultLength is how many packets wait at most; the kernel drops what comes on top, and whoever
// means it tries again.
const DefaultLength = 4096

// Options say which queue is read and how verdicts are told.
type Options struct {
	// Number of the queue: route.Names.Queue.
	Number uint16
	// Length is how many packets wait at most; 0 is DefaultLength.
	Length uint32
	// AcceptMark is the mark that means "accepted" to the guard: route.Names.InMark.
	AcceptMark uint32
	// AskedMark within Mask is what the guard marks solicited datagrams with; 0: it does not.
	AskedMark, Mask uint32
	// OwnMark is the mark of our own sockets, with which resets and ICMP errors are sent.
	OwnMark uint32
	// Logger must not be nil.
	Logger *zap.Logger
}

func (o Options) withDefaults() (Options, error) {
	if o.Length == 0 {
		o.Length = DefaultLength
	}
	switch {
	case o.Logger == nil:
		return o, errors.New("inbound: a logger is needed")
	case o.AcceptMark == 0:
		return o, errors.New("inbound: want a mark for what is accepted, got 0")
	}
	return o, nil
}

// Counters say what became of the packets so far.
type Counters struct {
	Held     uint64 `json:"held"`     // came to userspace
	Accepted uint64 `json:"accepted"` // of these
	Dropped  uint64 `json:"dropped"`
	Rejected uint64 `json:"rejected"`
	Refused  uint64 `json:"refused"` // of the dropped: not a whole packet of a flow
	Overrun  uint64 `json:"overrun"` // dropped by the kernel: too many waited
}

// verdict of a held packet, in the kernel's numbers (linux/netfilter.h).
type verdict uint32

const (
	drop   verdict = 0 // NF_DROP
	repeat verdict = 4 // NF_REPEAT: the chain once more, with the mark
)

// opens reports whether a packet may begin a flow. Of TCP only a SYN does: everything else belongs to a
// connection that connection tracking has forgotten, or to none.
func opens(h *packet.Header) bool {
	return h.Flow.Proto != packet.TCP || h.TCPFlags&(packet.TCPSyn|packet.TCPAck|packet.TCPRst|packet.TCPFin) == packet.TCPSyn
}

// flowOf is the flow as this machine sees it.
func flowOf(h *packet.Header) packet.Flow {
	return packet.Flow{Proto: h.Flow.Proto, Local: h.Flow.Remote, Remote: h.Flow.Local}
}

// usable reports why a packet is of no flow that could be decided.
func usable(h *packet.Header) error {
	switch {
	case h.Flow.Proto != packet.TCP && h.Flow.Proto != packet.UDP:
		return fmt.Errorf("protocol %s", h.Flow.Proto)
	case h.Fragment:
		return errors.New("a fragment")
	case h.SourceRoute:
		return errors.New("source routing")
	}
	return nil
}
