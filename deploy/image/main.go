// Command image packs static programs as a container image for several
// platforms.
//
// Each folder it is given holds the tree of one platform, and is named after it:
// image -out image.tar bin/image/linux/amd64 bin/image/windows/amd64. The image
// holds those files and nothing else: no shell, no libraries. Its entry point is
// /overlayd. On Windows it is for HostProcess containers, has overlayd.exe for an
// entry point and, since Windows unpacks no layer without, a registry that is
// empty.
//
// The archive is an OCI image layout with docker save's manifest beside it, so
// docker load, podman load and ctr images import read it. No container engine
// is needed to write it, and the same files give the same bytes.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
)

func main() {
	img := image{Default: runtime.GOARCH}
	flag.StringVar(&img.Tag, "tag", "zlayer-cni:dev", "name and tag of the image")
	out := flag.String("out", "image.tar", "file to write")
	flag.Parse()
	img.Trees = flag.Args()

	if err := run(*out, img); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(out string, img image) error {
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := img.Write(file); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	return file.Close()
}
