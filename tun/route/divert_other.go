//go:build !linux

package route

import (
	"context"
	"errors"
	"syscall"

	"gatun/network/packet"
)

// Diverter is not available on this system: netstack ends all connections.
type Diverter struct{}

// Divert always fails.
func (v *Diverter) Divert(context.Context, packet.Flow, []byte) (*TCPConn, error) {
	return nil, ErrNotDiverted
}

// Port is 0.
func (v *Diverter) Port() uint16 { return 0 }

// Close does nothing.
func (v *Diverter) Close() {}

// Pipe is not available on this system.
type Pipe struct{}

// OpenPipe always fails.
func OpenPipe() (*Pipe, error) { return nil, errors.ErrUnsupported }

// Fill always fails.
func (*Pipe) Fill(syscall.Conn) (int, error) { return 0, errors.ErrUnsupported }

// Drain always fails.
func (*Pipe) Drain(syscall.Conn) (int, error) { return 0, errors.ErrUnsupported }

// Close does nothing.
func (*Pipe) Close() {}
