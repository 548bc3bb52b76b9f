//go:build !linux

package state

import "gatun/network/packet"

// Table reads the socket tables of one network namespace. On this system there is none to
// read: Open fails with ErrUnsupported.
type Table struct{}

// Open fails with ErrUnsupported.
func Open(Options) (*Table, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Table) Close() error { return nil }

// Find fails with ErrUnsupported.
func (*Table) Find(dst []Socket, _ packet.Flow) ([]Socket, error) { return dst, ErrUnsupported }

// Listeners fails with ErrUnsupported.
func (*Table) Listeners(dst []Socket, _ packet.Flow) ([]Socket, error) { return dst, ErrUnsupported }

// All fails with ErrUnsupported.
func (*Table) All(packet.Proto) ([]Socket, error) { return nil, ErrUnsupported }
