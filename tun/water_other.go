//go:build !linux

package tun

import (
	"errors"
	"fmt"

	"github.com/songgao/water"
)

func openError(name string, err error) error {
	return fmt.Errorf("open %s: %w", name, err)
}

func (o Options) openLarge() (Device, error) { return nil, errors.ErrUnsupported }

func (o Options) finish(ifc *water.Interface) (Device, error) {
	return &single{rwc: ifc, name: ifc.Name(), mtu: o.MTU}, nil
}
