module github.com/sallyport-pki/sallyport/services/deployer

go 1.26
