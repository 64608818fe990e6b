package daemon

import (
	"context"
	"flag"
	"fmt"

	"github.com/sallyport-pki/sallyport/internal/boot"
)

// Main is the main function of a service's program. Its command line has --config, by default /etc/sallyport/<name>.yaml, and
// --version; run is given the path of the configuration file. Main does not return.
func Main(name string, run func(ctx context.Context, file string) error) {
	file := flag.String("config", "/etc/sallyport/"+name+".yaml", "configuration `file`")
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	boot.Main(func(ctx context.Context) error {
		if *version {
			fmt.Println(boot.Version())
			return nil
		}
		return run(ctx, *file)
	})
}
