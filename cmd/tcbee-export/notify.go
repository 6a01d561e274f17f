// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
)

// notifyReady tells the service manager that waits for it, if one does, that everything is attached (sd_notify(3)).
func (a *app) notifyReady() error {
	name := a.getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte("READY=1"))
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: NOTIFY_SOCKET: %w", err)
	}
	return nil
}
