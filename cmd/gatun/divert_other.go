//go:build !linux

package main

import (
	"go.uber.org/zap"

	"gatun/tun/route"
)

// openDiverter returns nil: on this system netstack ends all connections.
func openDiverter(route.Names, *route.Dialer, *zap.Logger) *route.Diverter { return nil }
