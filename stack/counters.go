package stack

import "sync/atomic"

// Counters is a snapshot of what the Stack has seen since it was made. In is from the
// programs, Out is to them.
type Counters struct {
	PacketsIn, BytesIn   uint64
	PacketsOut, BytesOut uint64

	// Packets that were dropped because no honest program sends them.
	Malformed   uint64 // headers that contradict themselves or the packet's length
	Spoofed     uint64 // source is no address of this machine
	SourceRoute uint64 // IPv4 source routing option, IPv6 routing header
	Destination uint64 // multicast, broadcast, loopback, unspecified
	Checksum    uint64 // of the IPv4 header or the transport segment
	Fragments   uint64 // overlapping, hiding, too many, or never completed
	ICMP        uint64 // anything but echo requests

	// Packets that were dropped because a limit was reached.
	HeldTCPLimit, UDPLimit, PingLimit, OtherLimit uint64
	HoldOverflow                                  uint64 // datagrams beyond a flow's hold
	WriteErrors                                   uint64 // packets that the device did not take

	Reassembled   uint64 // packets that were whole again
	StraySegments uint64 // TCP segments of no connection, answered with RST
	ReusedTuples  uint64 // SYNs that took the place of a connection that was not quite over
	AbandonedSYNs uint64 // held SYNs whose program stopped asking
	Undecided     uint64 // flows whose handler returned without a verdict
	Panics        uint64 // handlers that panicked

	// What there is at this moment.
	HeldTCP, UDPFlows, Pings, Others int
}

// counts are the live counters. The reader and the writer each own theirs; the rest is shared.
type counts struct {
	packetsIn, bytesIn, packetsOut, bytesOut atomic.Uint64

	malformed, spoofed, sourceRoute, destination, checksum, fragments, icmp atomic.Uint64

	heldTCPLimit, udpLimit, pingLimit, otherLimit, holdOverflow, writeErrors atomic.Uint64

	reassembled, straySegments, reusedTuples, abandonedSYNs, undecided, panics atomic.Uint64
}

// Counters returns a snapshot. It may be called at any time.
func (s *Stack) Counters() Counters {
	c := &s.counts
	return Counters{
		PacketsIn: c.packetsIn.Load(), BytesIn: c.bytesIn.Load(),
		PacketsOut: c.packetsOut.Load(), BytesOut: c.bytesOut.Load(),
		Malformed: c.malformed.Load(), Spoofed: c.spoofed.Load(), SourceRoute: c.sourceRoute.Load(),
		Destination: c.destination.Load(), Checksum: c.checksum.Load(),
		Fragments: c.fragments.Load(), ICMP: c.icmp.Load(),
		HeldTCPLimit: c.heldTCPLimit.Load(), UDPLimit: c.udpLimit.Load(), PingLimit: c.pingLimit.Load(),
		OtherLimit: c.otherLimit.Load(), HoldOverflow: c.holdOverflow.Load(), WriteErrors: c.writeErrors.Load(),
		Reassembled: c.reassembled.Load(), StraySegments: c.straySegments.Load(), ReusedTuples: c.reusedTuples.Load(),
		AbandonedSYNs: c.abandonedSYNs.Load(), Undecided: c.undecided.Load(), Panics: c.panics.Load(),
		HeldTCP: s.syns.len(), UDPFlows: s.udp.len(), Pings: s.pings.len(), Others: s.others.len(),
	}
}
