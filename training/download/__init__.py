"""SoccerNet-MVFoul from the Hugging Face hub to the layout that training reads."""
