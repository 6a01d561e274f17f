// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package simulate

import "os"

// What only Linux tells is 0 here.

func processCPU() float64 { return 0 }
func threadCPU() float64  { return 0 }
func rssAnon() uint64     { return 0 }

func deviceWritten() uint64 { return 0 }
func openFiles() int        { return 0 }

func allocatedBytes(fi os.FileInfo) int64 { return fi.Size() }
