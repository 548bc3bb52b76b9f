package tun

import (
	"strings"

	"github.com/songgao/water"
)

func (o Options) platformParams() water.PlatformSpecificParams {
	if !strings.HasPrefix(o.Name, "utun") {
		return water.PlatformSpecificParams{}
	}
	return water.PlatformSpecificParams{Name: o.Name}
}
