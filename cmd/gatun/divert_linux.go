package main

import (
	"go.uber.org/zap"

	"gatun/tun/route"
)

// openDiverter opens what lets the kernel end connections that are relayed. Without it netstack does.
func openDiverter(n route.Names, d *route.Dialer, log *zap.Logger) *route.Diverter {
	files, err := route.OpenDiverterFiles(n.DivertMark)
	if err == nil {
		var v *route.Diverter
		if v, err = route.NewDiverter(files, d, true); err == nil {
			return v
		}
	}
	log.Info("connections are relayed through netstack", zap.Error(err))
	return nil
}
