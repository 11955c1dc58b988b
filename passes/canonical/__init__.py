"""The front: any exported decoder, brought to the one form that every graft reads."""
