// Command image packs static programs as a container image for several
// architectures.
//
// Each folder it is given holds the tree of one architecture, and is named
// after it: image -out image.tar bin/image/amd64 bin/image/arm64. The image
// holds those files and nothing else: no shell, no libraries. Its entry point
// is /overlayd.
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
