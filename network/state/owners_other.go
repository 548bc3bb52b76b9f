//go:build !linux

package state

import (
	"context"
	"net/netip"
	"time"

	"gatun/network/packet"
)

// Owners is not available here.
type Owners struct{}

// OpenOwners fails with ErrNoHooks.
func OpenOwners(OwnersOptions) (*Owners, error) {
	return nil, noHooks("they are a part of Linux")
}

// Close does nothing.
func (*Owners) Close() error { return nil }

// Sender finds nobody.
func (*Owners) Sender(packet.Flow) (s Sender, found bool) { return s, false }

// Image knows nothing.
func (*Owners) Image(ImageID) (*Image, bool) { return nil, false }

// Permits is not available here.
type Permits struct{}

// Permits fails with ErrNoPermits.
func (*Owners) Permits() (*Permits, error) { return nil, ErrNoPermits }

// Close does nothing.
func (*Permits) Close() error { return nil }

// Renew does nothing.
func (*Permits) Renew() error { return nil }

// Now is no moment.
func (*Permits) Now() (m Moment) { return m }

// Permit fails with ErrNoPermits.
func (*Permits) Permit(Permission, Moment, time.Time) error { return ErrNoPermits }

// Extend has nothing to extend.
func (*Permits) Extend(since, until time.Time) ([]netip.AddrPort, error) { return nil, nil }

// Forget does nothing.
func (*Permits) Forget(netip.AddrPort) error { return nil }

// ForgetAddr does nothing.
func (*Permits) ForgetAddr(netip.Addr) error { return nil }

// Len is 0.
func (*Permits) Len() int { return 0 }

// Begun has seen nothing begin.
func (*Permits) Begun(func(Begun)) {}

// Wait fails with ErrNoPermits.
func (*Permits) Wait(context.Context) error { return ErrNoPermits }
