//go:build !linux

package state

import (
	"context"
	"net/netip"
	"os"

	"gatun/network/packet"
)

// Closings is not available here.
type Closings struct{}

// OpenClosings returns ErrUnsupported.
func OpenClosings() (*Closings, error) { return nil, ErrUnsupported }

// AdoptClosings returns ErrUnsupported.
func AdoptClosings(*os.File) (*Closings, error) { return nil, ErrUnsupported }

// Run returns ErrUnsupported.
func (*Closings) Run(context.Context, func(packet.Proto, netip.AddrPort), func()) error {
	return ErrUnsupported
}
