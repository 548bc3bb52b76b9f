//go:build !linux && !darwin && !windows

package tun

import "github.com/songgao/water"

func (o Options) platformParams() water.PlatformSpecificParams {
	return water.PlatformSpecificParams{}
}
