//go:build !linux

package tun

import (
	"fmt"

	"github.com/songgao/water"
)

func openError(name string, err error) error {
	return fmt.Errorf("open %s: %w", name, err)
}

func (o Options) finish(ifc *water.Interface) (Device, error) {
	return &single{rwc: ifc, name: ifc.Name(), mtu: o.MTU}, nil
}
