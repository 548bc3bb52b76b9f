//go:build !linux

package inbound

import (
	"context"

	"gatun/network/packet"
)

// Queue does not exist on this system.
type Queue struct{}

// Open fails with ErrUnsupported.
func Open(Options) (*Queue, error) { return nil, ErrUnsupported }

// Run fails with ErrUnsupported.
func (*Queue) Run(context.Context, func(*Held)) error { return ErrUnsupported }

// Counters are zero.
func (*Queue) Counters() Counters { return Counters{} }

// Close does nothing.
func (*Queue) Close() {}

// Held does not exist on this system.
type Held struct{}

// Flow is the zero flow.
func (*Held) Flow() packet.Flow { return packet.Flow{} }

// Opens is false.
func (*Held) Opens() bool { return false }

// Solicited is false.
func (*Held) Solicited() bool { return false }

// Accept does nothing.
func (*Held) Accept() {}

// Drop does nothing.
func (*Held) Drop() {}

// Reject does nothing.
func (*Held) Reject() {}

// Flows does not exist on this system.
type Flows struct{}

// OpenFlows fails with ErrUnsupported.
func OpenFlows() (*Flows, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Flows) Close() error { return nil }

// Look knows of no flow.
func (*Flows) Look(packet.Flow) (sent, received uint64, lives bool) { return 0, 0, false }

// End fails with ErrUnsupported.
func (*Flows) End(packet.Flow) error { return ErrUnsupported }
