"""Finding pneumonia on chest films, and showing why the model thinks so."""
