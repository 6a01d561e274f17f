// SPDX-License-Identifier: Apache-2.0

package pipeline

import "golang.org/x/sys/unix"

// netnsCookie is the cookie of the network namespace of this process, 0 if the kernel does not
// tell (before 5.14).
func netnsCookie() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}
