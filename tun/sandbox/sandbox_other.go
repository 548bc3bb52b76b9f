//go:build !linux

package sandbox

import (
	"context"
	"net"
	"os"
	"syscall"

	"gatun/tun"
	"gatun/tun/route"
)

// IsChild reports whether this process is the supervisor of a sandbox.
func IsChild() bool { return false }

// ChildMain is the supervisor; there is none on this system.
func ChildMain() { os.Exit(ExitOwnFailure) }

// Box is a sandbox; there is none on this system.
type Box struct{}

// Start returns ErrUnsupported.
func Start(context.Context, Options) (*Box, error) { return nil, ErrUnsupported }

// Device returns nil.
func (*Box) Device() tun.Device { return nil }

// DiagFD returns nil.
func (*Box) DiagFD() *os.File { return nil }

// Diverter returns nil.
func (*Box) Diverter(*route.Dialer) *route.Diverter { return nil }

// Closings returns nil.
func (*Box) Closings() *os.File { return nil }

// NetNS returns 0.
func (*Box) NetNS() uint64 { return 0 }

// PID returns 0.
func (*Box) PID() int { return 0 }

// SupervisorPID returns 0.
func (*Box) SupervisorPID() int { return 0 }

// Go returns ErrUnsupported.
func (*Box) Go(context.Context) error { return ErrUnsupported }

// Wait returns ErrUnsupported.
func (*Box) Wait(context.Context) (int, error) { return ExitOwnFailure, ErrUnsupported }

// Signal returns ErrUnsupported.
func (*Box) Signal(syscall.Signal) error { return ErrUnsupported }

// CatchSignals returns a function that returns ErrUnsupported.
func (*Box) CatchSignals() (relay func(context.Context) error) {
	return func(context.Context) error { return ErrUnsupported }
}

// DialInside returns ErrUnsupported.
func (*Box) DialInside(context.Context, uint16) (*net.TCPConn, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Box) Close() error { return nil }
