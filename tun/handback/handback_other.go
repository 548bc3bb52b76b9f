//go:build !linux

package handback

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"gatun/network/packet"
)

// Table is the flows that the kernel carries: none, on this system.
type Table struct{}

// Open always fails with ErrUnsupported.
func Open(o Options) (*Table, error) {
	if _, err := o.withDefaults(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: only Linux has a way", ErrUnsupported)
}

// Recover has nothing to take away.
func Recover(Options) error { return nil }

// Accept implements the contract of Linux.
func (*Table) Accept(packet.Flow, []byte) error { return ErrUnsupported }

// AcceptAll implements the contract of Linux.
func (*Table) AcceptAll(flows []packet.Flow, _ [][]byte, each func(i int, err error)) {
	for i := range flows {
		each(i, ErrUnsupported)
	}
}

// Follow implements the contract of Linux.
func (*Table) Follow(packet.Flow, []byte) error { return ErrUnsupported }

// Send implements the contract of Linux.
func (*Table) Send(packet.Flow, []byte) error { return ErrUnsupported }

// Relayed implements the contract of Linux.
func (*Table) Relayed(packet.Flow) error { return ErrUnsupported }

// Forget implements the contract of Linux.
func (*Table) Forget(packet.Flow) error { return ErrUnsupported }

// Silence implements the contract of Linux.
func (*Table) Silence(_, _ []packet.Flow, _ time.Duration) error { return ErrUnsupported }

// Hear implements the contract of Linux.
func (*Table) Hear(packet.Flow) error { return nil }

// Compact implements the contract of Linux.
func (*Table) Compact() {}

// Revoke implements the contract of Linux.
func (*Table) Revoke(packet.Flow) error { return ErrUnsupported }

// Counters implements the contract of Linux.
func (*Table) Counters(func(packet.Flow, Counter)) error { return ErrUnsupported }

// Traffic implements the contract of Linux.
func (*Table) Traffic(func(packet.Flow, Traffic)) error { return ErrUnsupported }

// Restore implements the contract of Linux.
func (*Table) Restore() error { return ErrUnsupported }

// Run implements the contract of Linux.
func (*Table) Run(context.Context) error { return ErrUnsupported }

// Ahead implements the contract of Linux.
func (*Table) Ahead() error { return ErrUnsupported }

// Admit implements the contract of Linux.
func (*Table) Admit(packet.Proto, ...netip.AddrPort) error { return ErrUnsupported }

// EndAhead implements the contract of Linux.
func (*Table) EndAhead() {}

// Carry implements the contract of Linux.
func (*Table) Carry(Began) error { return ErrUnsupported }

// Len implements the contract of Linux.
func (*Table) Len() int { return 0 }

// Close implements the contract of Linux.
func (*Table) Close() error { return nil }
