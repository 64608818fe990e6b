module github.com/sallyport-pki/sallyport/cli

go 1.26
